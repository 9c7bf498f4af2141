"""Changes the keys file: under a lock, and at once, so that a front end never reads half of it."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import orjson

from frontend.api_key import ApiKey
from frontend.keys.keys_file import read_keys, reason_of

_LOCK_TIMEOUT_S = 5.0
_LOCK_PAUSE_S = 0.05
_OWNER_ONLY = 0o600
_NOT_WRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)


class KeysEditError(Exception):
    """The keys file cannot be read or changed. The message names the file, the reason and what to do."""


def listed_keys(path: Path) -> list[ApiKey]:
    """The entries of the file; none if it does not exist. Raises KeysEditError."""
    try:
        return read_keys(path)
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise KeysEditError(f"{path} cannot be used: {reason_of(error)}") from None


@contextmanager
def editing(path: Path, *, in_place: bool = False) -> Iterator[list[ApiKey]]:
    """Yields the entries as a list to change, and writes it at the end unless the block raises. Raises KeysEditError.

    A new file is for its owner only; an existing one keeps its owner and mode. `in_place` is for a file that is mounted
    by itself: it cannot be replaced, so a front end may read half of it, and reads it again after half a second.
    """
    path = Path(os.path.realpath(path))  # not the link: its target is replaced
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(path.parent):
            keys = listed_keys(path)
            yield keys
            entries = [key.model_dump(mode="json", exclude_none=True) for key in keys]
            content = orjson.dumps(entries, option=orjson.OPT_INDENT_2) + b"\n"
            if in_place and path.exists():
                path.write_bytes(content)
            else:
                _replace(path, content)
    except OSError as error:
        raise KeysEditError(_problem(path, error)) from error


def _replace(path: Path, content: bytes) -> None:
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, _OWNER_ONLY), "wb") as file:
            with suppress(FileNotFoundError):
                _copy_access(path, file.fileno())
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise


def _copy_access(path: Path, descriptor: int) -> None:
    found = path.stat()
    os.fchmod(descriptor, stat.S_IMODE(found.st_mode))
    own = os.fstat(descriptor)
    if (found.st_uid, found.st_gid) != (own.st_uid, own.st_gid):
        os.fchown(descriptor, found.st_uid, found.st_gid)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Excludes other editors of files in the folder. The lock is on the folder: the file itself is replaced."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        deadline_s = time.monotonic() + _LOCK_TIMEOUT_S
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline_s:
                    raise KeysEditError(f"Another program is changing the files in {folder}. Try again.") from None
                time.sleep(_LOCK_PAUSE_S)
        yield
    finally:
        os.close(descriptor)


def _problem(path: Path, error: OSError) -> str:
    if error.errno == errno.EBUSY:
        return (
            f"{path} is mounted as a single file, so it cannot be replaced. Change it where it comes from, or write "
            "into it with --in-place."
        )
    if error.errno in _NOT_WRITABLE:
        return (
            f"{path} cannot be written here ({error.strerror}). A mounted Secret is read-only: change the file that it "
            "is made from, and update the Secret (docs/keys.md)."
        )
    return f"{path} cannot be changed: {error.strerror or error}"
