"""Model and target names as they appear in paths."""

from __future__ import annotations

import re

from build_engine.errors import EngineRefusedError


def slug(text: str) -> str:
    """`text` in lowercase with only letters, digits, '.', '_' and '-'. Empty if no such character is left."""
    return re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("-.")


def checked_model_name(name: str) -> str:
    """`name` itself. Raises EngineRefusedError if it is empty or can't be a directory's name."""
    if not name or name != slug(name):
        raise EngineRefusedError(f"Invalid model name {name!r}. Use lowercase letters, digits, '.', '_' and '-'.")
    return name
