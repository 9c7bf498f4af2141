"""Writes the page of all settings: `python -m scripts.settings_page > docs/settings.md`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from pydantic_core import PydanticUndefined
from pydantic_settings import BaseSettings

from frontend.settings import FrontendSettings
from launcher.gpu.launch import LaunchSettings
from launcher.settings import REPOSITORY_ROOT, StackSettings
from llm_pipeline.runtime.settings import PipelineSettings

_PROGRAMS: dict[str, type[BaseSettings]] = {
    "launcher": StackSettings,
    "front end": FrontendSettings,
    "Triton's models": PipelineSettings,
    "GPU launch": LaunchSettings,
}
_HEAD = """# Settings

All settings are environment variables: `make serve PORT=9100 EXECUTOR=scripted`, or `export` them. An invalid value
stops the start with a message that names the setting. This page is generated: `python -m scripts.settings_page`.

| setting | default | read by | meaning |
| --- | --- | --- | --- |
"""


def settings_page() -> str:
    """Returns the page as Markdown: one row for each setting, in the order of the programs."""
    rows: dict[str, tuple[str, list[str], str]] = {}
    for program, settings in _PROGRAMS.items():
        for name, field in settings.model_fields.items():
            row: tuple[str, list[str], str] = (_format_default(field.default), [], field.description or "")
            default, programs, description = rows.get(name.upper(), row)
            rows[name.upper()] = (default, [*programs, program], description)
    lines = [
        f"| `{name}` | {default} | {', '.join(programs)} | {description} |"
        for name, (default, programs, description) in rows.items()
    ]
    return _HEAD + "\n".join(lines) + "\n"


def _format_default(default: Any) -> str:
    if default is PydanticUndefined:
        return "required"
    if default is None or default == ():
        return "none"
    if isinstance(default, Path):
        default = default.relative_to(REPOSITORY_ROOT) if default.is_relative_to(REPOSITORY_ROOT) else default
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    return f"`{default}`"


if __name__ == "__main__":
    sys.stdout.write(settings_page())
