"""Names that end up in paths."""

from __future__ import annotations

import re


def slug(text: str) -> str:
    """Small letters, digits, '.', '_' and '-' only; empty when nothing of the text is left."""
    return re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("-.")
