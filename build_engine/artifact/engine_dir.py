"""Publishes an engine directory atomically, with one builder at a time.

    .<name>.lock            flock(2), locked during a build; never removed, since removing a lock file is a race
    .<name>.building-<pid>  the directory that a build writes to; renamed to <name> at the end
    .<name>.replaced-<pid>  the previous engine, between the two renames

All three are siblings of <name>, so a rename never crosses file systems. The kernel releases the lock of a process that
dies, so the process that has the lock may remove every building directory: their builders are gone.
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
from llm_pipeline.engine_files.manifest import MANIFEST_NAME, EngineManifest

DEFAULT_ROOT = Path(".run/engines")  # of engines that are built without --output or --root
LOCK_WAIT_S = 900.0
_LOCK_POLL_S = 0.2


@contextmanager
def build_lock(engine_dir: Path, on_wait: Callable[[], None], wait_s: float = LOCK_WAIT_S) -> Iterator[int]:
    """Locks the directory and cleans up after killed builds; yields the lock's file descriptor.

    `on_wait` is called once if another build has the lock. Raises EngineBusyError after `wait_s`.
    """
    engine_dir.parent.mkdir(parents=True, exist_ok=True)
    with _sibling(engine_dir, "lock").open("w") as lock:
        _acquire(lock.fileno(), engine_dir, on_wait, wait_s)
        _remove_leftovers(engine_dir)
        yield lock.fileno()


def _acquire(descriptor: int, engine_dir: Path, on_wait: Callable[[], None], wait_s: float) -> None:
    deadline = time.monotonic() + wait_s
    is_waiting = False
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise EngineBusyError(
                    f"Another build of {engine_dir} has not finished within {wait_s:.0f} s. "
                    "Wait for it, end it, or choose another --output."
                ) from None
        if not is_waiting:
            on_wait()
            is_waiting = True
        time.sleep(_LOCK_POLL_S)


def _remove_leftovers(engine_dir: Path) -> None:
    """Removes the partial engines of killed builds and restores an engine that was between the two renames."""
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
    """A directory to build in. Published as `engine_dir` after the block, or removed if the block raises.

    Must be called under `build_lock`.
    """
    building = _sibling(engine_dir, f"building-{os.getpid()}")
    building.mkdir()
    try:
        yield building
        _publish(building, engine_dir)
    finally:
        shutil.rmtree(building, ignore_errors=True)  # published: already renamed


def replace_manifest(engine_dir: Path, manifest: EngineManifest) -> None:
    """Replaces the manifest of a published engine atomically. Must be called under `build_lock`."""
    building = _sibling(engine_dir, f"building-{os.getpid()}")
    building.mkdir()
    try:
        manifest.save(building)
        os.replace(building / MANIFEST_NAME, engine_dir / MANIFEST_NAME)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _publish(building: Path, engine_dir: Path) -> None:
    if not engine_dir.exists():
        return os.rename(building, engine_dir)
    replaced = _sibling(engine_dir, f"replaced-{os.getpid()}")
    os.rename(engine_dir, replaced)
    os.rename(building, engine_dir)
    shutil.rmtree(replaced)
    return None


def require_replaceable(
    engine_dir: Path, engine_files: frozenset[str], is_engine_file: Callable[[str], bool] = lambda name: False
) -> None:
    """Raises EngineRefusedError if `engine_dir` has files that no build writes, since they would be lost.

    `is_engine_file` recognises names that are not fixed.
    """
    if engine_dir.is_symlink() or (engine_dir.exists() and not engine_dir.is_dir()):
        raise EngineRefusedError(f"{engine_dir} is not a plain directory. Choose another --output.")
    if not engine_dir.exists():
        return
    other_files = sorted(
        entry.name
        for entry in engine_dir.iterdir()
        if entry.name not in engine_files | {MANIFEST_NAME} and not is_engine_file(entry.name)
    )
    if other_files:
        raise EngineRefusedError(
            f"{engine_dir} contains files that are not part of an engine, such as {other_files[0]}. "
            "Move them or choose another --output."
        )


def _sibling(engine_dir: Path, suffix: str) -> Path:
    return engine_dir.parent / f".{engine_dir.name}.{suffix}"
