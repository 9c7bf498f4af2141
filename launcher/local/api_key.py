"""Chooses the API key of a local stack; generates one and stores it if the settings contain none."""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

from launcher.local.errors import StartError
from launcher.settings import StackSettings

KEY_FILE_NAME = "api-key"  # in RUN_DIR


def create_keys_file(settings: StackSettings) -> None:
    """Creates the file that `triton-completions keys` adds to, without keys, unless the settings name another.

    Raises OSError.
    """
    if settings.api_keys_file is None and not settings.keys_file.exists():
        with os.fdopen(os.open(settings.keys_file, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
            file.write("[]\n")


def choose_api_key(settings: StackSettings, run_dir: Path) -> str | None:
    """Returns API_KEY, or a generated key that is kept in `run_dir`; None if API_KEYS_FILE defines the keys.

    Raises StartError if other users can read or change the stored key, OSError if a new one cannot be stored.
    """
    if settings.api_keys_file is not None:
        return None
    if settings.api_key:
        return settings.api_key
    path = run_dir / KEY_FILE_NAME
    if path.exists() and (key := path.read_text().strip()):
        _require_private(path)
        return key
    return _generate_key(path)


def _require_private(path: Path) -> None:
    """A key that others could read may already be known, so it is not used without a decision of its owner."""
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise StartError(
            f"{path} holds an API key, and other users may read or change it (mode {mode:04o}). Delete it, so that "
            f"the next start generates a new key, or keep the key: `chmod 600 {path}`."
        )


def _generate_key(path: Path) -> str:
    key = f"sk-{secrets.token_urlsafe(24)}"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        os.fchmod(file.fileno(), 0o600)  # the file may have existed with other permissions
        file.write(key + "\n")
    return key
