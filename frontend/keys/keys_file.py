"""Reads API_KEYS_FILE and checks who may change it."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TypeAlias

from pydantic import TypeAdapter, ValidationError

from frontend.api_key import ApiKey

_KEY_LIST = TypeAdapter(list[ApiKey])
_WRITABLE = stat.S_IWGRP | stat.S_IWOTH

# Differs between two versions of a file: its time of modification in ns, size in bytes, inode, and mode.
FileStamp: TypeAlias = tuple[int, int, int, int]


class KeysFileError(ValueError):
    """API_KEYS_FILE is missing or invalid at start."""


def stamp_of(path: Path) -> FileStamp:
    """Returns the stamp of the file. Raises OSError if there is none."""
    found = path.stat()
    return found.st_mtime_ns, found.st_size, found.st_ino, found.st_mode


def read_keys(path: Path) -> list[ApiKey]:
    """Reads the keys. Raises OSError if the file cannot be read, ValueError if it is invalid or others may write it."""
    with path.open("rb") as file:
        mode = os.fstat(file.fileno()).st_mode
        if mode & _WRITABLE:
            raise ValueError(
                f"{path} is writable by its group or by others (mode {stat.S_IMODE(mode):04o}), who could add keys of "
                f"their own. Run: chmod go-w {path}"
            )
        keys = _KEY_LIST.validate_json(file.read())
    if len({key.name for key in keys}) < len(keys):
        raise ValueError("two keys have the same name")
    return keys


def is_public(stamp: FileStamp) -> bool:
    """Whether every user of this machine may read the hashes."""
    return bool(stamp[3] & stat.S_IROTH)


def reason_of(error: Exception) -> str:
    """What is wrong with the file, without any of its content: that may be a plain key in the place of its hash."""
    if isinstance(error, ValidationError):
        return "; ".join(f"{item['loc']}: {item['msg']}" for item in error.errors(include_input=False))
    return str(error)
