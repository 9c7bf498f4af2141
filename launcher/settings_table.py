"""`python -m launcher.settings_table > docs/settings.md`: every setting of every program, in one table."""

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

_READERS: dict[str, type[BaseSettings]] = {
    "launcher": StackSettings,
    "front end": FrontendSettings,
    "Triton's models": PipelineSettings,
    "GPU launch": LaunchSettings,
}
_HEAD = """# Settings

All settings are environment variables: `make serve PORT=9100 EXECUTOR=scripted`, or `export` them. A bad value stops
the start and is named. This page is written by `python -m launcher.settings_table`; a test keeps it current.

| setting | default | read by | meaning |
| --- | --- | --- | --- |
"""


def settings_table() -> str:
    """The page, as Markdown."""
    rows: dict[str, tuple[str, list[str], str]] = {}
    for reader, settings in _READERS.items():
        for name, field in settings.model_fields.items():
            default, readers, description = rows.get(name.upper(), (_shown(field.default), [], field.description or ""))
            rows[name.upper()] = (default, [*readers, reader], description)
    lines = [
        f"| `{name}` | {default} | {', '.join(readers)} | {description} |"
        for name, (default, readers, description) in rows.items()
    ]
    return _HEAD + "\n".join(lines) + "\n"


def _shown(default: Any) -> str:
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
    sys.stdout.write(settings_table())
