"""The files of an engine directory for chat: the model's templates, and the spellings of the tokens that they use."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from llm_pipeline.engine_files.manifest import EngineManifest, ManifestError

DEFAULT_TEMPLATE_FILE = "chat_template.jinja"
CHAT_TOKENS_FILE = "chat_tokens.json"  # {"bos_token": "<s>", "eos_token": "</s>"}; empty where the model has none
MAX_NAME_CHARACTERS = 64
_NAME = r"[A-Za-z0-9_-]+"
_TEMPLATE_FILE = re.compile(rf"chat_template(?:\.({_NAME}))?\.jinja")


def template_file(name: str) -> str:
    """The file of a template by its name, which `is_template_name` accepts."""
    return DEFAULT_TEMPLATE_FILE if name == "default" else f"chat_template.{name}.jinja"


def is_template_name(name: str) -> bool:
    return len(name) <= MAX_NAME_CHARACTERS and re.fullmatch(_NAME, name) is not None


def is_chat_file(name: str) -> bool:
    """Whether a build writes a file of this name for chat."""
    return name == CHAT_TOKENS_FILE or _TEMPLATE_FILE.fullmatch(name) is not None


def template_names(manifest: EngineManifest) -> list[str]:
    """The names of the templates in an engine directory, "default" first."""
    found = [match[1] or "default" for name in manifest.files if (match := _TEMPLATE_FILE.fullmatch(name))]
    return sorted(found, key=lambda name: (name != "default", name))


def read_templates(engine_dir: Path, manifest: EngineManifest) -> Iterator[tuple[str, str]]:
    """The name and the source of each template. Raises ManifestError if one can't be read."""
    for name in template_names(manifest):
        yield name, _read(engine_dir / template_file(name))


def read_chat_tokens(engine_dir: Path, manifest: EngineManifest) -> dict[str, str] | None:
    """The spellings of the tokens; None in the directory of a release before chat. Raises ManifestError likewise."""
    if CHAT_TOKENS_FILE not in manifest.files:
        return None
    try:
        tokens = json.loads(_read(engine_dir / CHAT_TOKENS_FILE))
        return {name: str(tokens[name]) for name in ("bos_token", "eos_token")}
    except (ValueError, KeyError, TypeError) as error:
        raise ManifestError(
            f"{engine_dir / CHAT_TOKENS_FILE} is damaged. Build the engine again with --force."
        ) from error


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestError(f"{path} can't be read: {error}. Build the engine again with --force.") from error
