"""Chooses the API key of a local stack; generates one and stores it if the settings contain none."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from launcher.settings import StackSettings

KEY_FILE_NAME = "api-key"  # in RUN_DIR


def choose_api_key(settings: StackSettings, run_dir: Path) -> str | None:
    """Returns API_KEY, or a generated key that is kept in `run_dir`; None if API_KEYS_FILE defines the keys.

    Raises OSError if the generated key cannot be stored.
    """
    if settings.api_keys_file is not None:
        return None
    if settings.api_key:
        return settings.api_key
    path = run_dir / KEY_FILE_NAME
    if path.exists() and (key := path.read_text().strip()):
        return key
    return _generate_key(path)


def _generate_key(path: Path) -> str:
    key = f"sk-{secrets.token_urlsafe(24)}"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(key + "\n")
    path.chmod(0o600)  # the file may have existed with other permissions
    return key
