"""Makes an engine directory appear whole or not at all, with one builder at a time.

    .<name>.lock            flock(2), held during a build; stays behind empty, since removing a lock file races
    .<name>.building-<pid>  where the build writes; renamed to <name> at the end
    .<name>.replaced-<pid>  the engine that was there before, for the moment between two renames

All three are siblings of <name>, so a rename never crosses file systems. The kernel drops the lock when its holders
die, so whoever holds it may remove every building directory it finds: their builders are gone.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from build_engine.errors import EngineBusyError, EngineRefusedError
from llm_pipeline.engine_files.manifest import MANIFEST_NAME

DEFAULT_ROOT = Path(".run/engines")  # contains every engine that is built without --output or --root
LOCK_WAIT_S = 900.0
_LOCK_POLL_S = 0.2


@contextmanager
def build_lock(engine_dir: Path, on_wait: Callable[[], None], wait_s: float = LOCK_WAIT_S) -> Iterator[int]:
    """Hold the directory's lock, and clean up after killed builds; yields the lock's file descriptor.

    `on_wait` is called once if another build holds it. EngineBusyError after `wait_s`.
    """
    engine_dir.parent.mkdir(parents=True, exist_ok=True)
    with _sibling(engine_dir, "lock").open("w") as lock:
        _acquire(lock.fileno(), engine_dir, on_wait, wait_s)
        _remove_leftovers(engine_dir)
        yield lock.fileno()


def _acquire(descriptor: int, engine_dir: Path, on_wait: Callable[[], None], wait_s: float) -> None:
    deadline = time.monotonic() + wait_s
    told = False
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise EngineBusyError(
                    f"Another build of {engine_dir} has not finished in {wait_s:.0f} s. "
                    "Wait for it, end it, or choose another --output."
                ) from None
        if not told:
            on_wait()
            told = True
        time.sleep(_LOCK_POLL_S)


def _remove_leftovers(engine_dir: Path) -> None:
    """Undo what a killed build left: half-written engines go, an engine caught between the two renames returns."""
    parent = engine_dir.parent
    for leftover in parent.glob(f".{engine_dir.name}.building-*"):
        shutil.rmtree(leftover)
    for replaced in parent.glob(f".{engine_dir.name}.replaced-*"):
        if engine_dir.exists():
            shutil.rmtree(replaced)
        else:
            replaced.rename(engine_dir)


@contextmanager
def new_engine(engine_dir: Path) -> Iterator[Path]:
    """A directory to build in, published as `engine_dir` when the block ends well and removed when it does not.

    Call it under `build_lock`.
    """
    building = _sibling(engine_dir, f"building-{os.getpid()}")
    building.mkdir()
    try:
        yield building
        _publish(building, engine_dir)
    finally:
        shutil.rmtree(building, ignore_errors=True)  # gone already when published


def _publish(building: Path, engine_dir: Path) -> None:
    if not engine_dir.exists():
        return os.rename(building, engine_dir)
    replaced = _sibling(engine_dir, f"replaced-{os.getpid()}")
    os.rename(engine_dir, replaced)
    os.rename(building, engine_dir)
    shutil.rmtree(replaced)
    return None


def require_replaceable(engine_dir: Path, engine_files: frozenset[str]) -> None:
    """EngineRefusedError when `engine_dir` holds anything that a build did not put there: it would be lost."""
    if engine_dir.is_symlink() or (engine_dir.exists() and not engine_dir.is_dir()):
        raise EngineRefusedError(f"{engine_dir} is not a plain directory. Choose another --output.")
    if not engine_dir.exists():
        return
    foreign = sorted(entry.name for entry in engine_dir.iterdir() if entry.name not in engine_files | {MANIFEST_NAME})
    if foreign:
        raise EngineRefusedError(
            f"{engine_dir} holds files that are no part of an engine, such as {foreign[0]}. "
            "Move them away or choose another --output."
        )


def _sibling(engine_dir: Path, suffix: str) -> Path:
    return engine_dir.parent / f".{engine_dir.name}.{suffix}"
