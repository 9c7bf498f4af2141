"""Writes keys files. The key of an entry without a hash is its name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path


def digest_of(key: str) -> str:
    """The hash of a key as the file stores it."""
    return hashlib.sha256(key.encode()).hexdigest()


def write_keys(path: Path, *keys: Mapping[str, object]) -> Path:
    """Replaces the file at once, as editors and Kubernetes do, with entries of the given fields."""
    listed = [{"sha256": digest_of(str(key["name"])), **key} for key in keys]
    new = path.with_suffix(".new")
    new.write_text(json.dumps(listed))
    new.chmod(0o600)
    return new.rename(path)


def bearer(key: str) -> dict[str, str]:
    """The header that sends a key."""
    return {"authorization": f"Bearer {key}"}
