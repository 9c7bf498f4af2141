"""What the worker processes of one front end share: counts, a lock, signs of life, and a folder for files.

A front end of one process has the same thing to itself (`Workers.alone`). Shared memory is a file that all of them
map; each worker writes only its own row, so a worker that dies leaves nothing half-written, and the supervisor clears
its row.
"""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llm_pipeline.protocol.errors import ErrorCode, PipelineError

_COUNTERS = 1024
_DIGEST_BYTES = 16  # of a counter's name
_CELL_BYTES = 8
_BEAT = _COUNTERS  # the last cells of a row: when the worker last showed life (ns, monotonic), and whether it is ready
_READY = _COUNTERS + 1
_ROW = _COUNTERS + 2
_NAMES_BYTES = _COUNTERS * _DIGEST_BYTES
_STATE, _LOCK = "state", "lock"
# The lock is held for microseconds. A worker that was stopped in between must not stop the others: they go on without.
_LOCK_TRIES = 200
_LOCK_PAUSE_S = 0.0001


class SharedCounter:
    """A number that all workers add to. Only the total has a meaning for limits."""

    __slots__ = ("_cells", "_own", "_slot")

    def __init__(self, cells: memoryview[int], slot: int, row: int) -> None:
        self._cells = cells
        self._slot = slot
        self._own = row * _ROW + slot

    def add(self, amount: int) -> None:
        """This worker's part changes."""
        self._cells[self._own] += amount

    @property
    def total(self) -> int:
        """What all workers that live have added."""
        return sum(self._cells[self._slot :: _ROW].tolist())


class SharedState:
    """One process's view. `number` is that of this worker, from 0; the supervisor has none (-1) and only looks."""

    def __init__(self, number: int, count: int, memory: mmap.mmap, folder: Path | None) -> None:
        self.number = number
        self.count = count
        self.folder = folder  # None when alone
        self._memory = memory
        self._cells = memoryview(memory)[_NAMES_BYTES:].cast("q")
        self._has_started = count * _ROW  # the index of the last cell
        self._lock_file = -1 if folder is None else os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)

    @classmethod
    def single_process(cls) -> SharedState:
        """A front end of one process."""
        return cls(0, 1, mmap.mmap(-1, _size(1)), None)

    @classmethod
    def create(cls, folder: Path, count: int) -> SharedState:
        """The supervisor's view of `count` workers that will share an empty folder."""
        with (folder / _STATE).open("wb") as file:
            file.truncate(_size(count))
        return cls.attach(folder, -1, count)

    @classmethod
    def attach(cls, folder: Path, number: int, count: int) -> SharedState:
        """A worker's view. OSError when the supervisor's folder is gone."""
        with (folder / _STATE).open("r+b") as file:
            return cls(number, count, mmap.mmap(file.fileno(), _size(count)), folder)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps the other workers out for a moment. The kernel frees it when its holder dies."""
        if self._lock_file < 0:
            yield
            return
        is_held = self._try_lock()
        try:
            yield
        finally:
            if is_held:
                fcntl.lockf(self._lock_file, fcntl.LOCK_UN)

    def _try_lock(self) -> bool:
        for _ in range(_LOCK_TRIES):
            if self._lock_now():
                return True
            time.sleep(_LOCK_PAUSE_S)
        return False

    def _lock_now(self) -> bool:
        try:
            fcntl.lockf(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    def counter(self, name: str) -> SharedCounter:
        """The counter of this name, the same one in every worker. Names are made once, not for each request."""
        digest = hashlib.blake2b(name.encode(), digest_size=_DIGEST_BYTES).digest()
        with self.lock():
            for slot in range(_COUNTERS):
                place = slice(slot * _DIGEST_BYTES, (slot + 1) * _DIGEST_BYTES)
                found = self._memory[place]
                if found == digest or not any(found):
                    self._memory[place] = digest
                    return SharedCounter(self._cells, slot, self.number)
        raise RuntimeError(f"more than {_COUNTERS} shared counters")

    def heartbeat(self, *, is_ready: bool) -> None:
        """This worker lives. When all have been ready once, the front end as a whole has started."""
        row = self.number * _ROW
        self._cells[row + _BEAT] = time.monotonic_ns()
        self._cells[row + _READY] = is_ready
        if not self.has_started and all(self._cells[number * _ROW + _READY] for number in range(self.count)):
            self._cells[self._has_started] = 1

    def last_beat_s(self, number: int) -> float:
        """When that worker last showed life (monotonic); 0 when it has not yet."""
        return self._cells[number * _ROW + _BEAT] / 1e9

    @property
    def has_started(self) -> bool:
        """Whether all workers have been ready at the same time once. True for good, whoever dies later."""
        return bool(self._cells[self._has_started])

    def require_started(self) -> None:
        """PipelineError (503) until every worker has been ready: a request may meet any of them."""
        if self.count > 1 and not self.has_started:
            raise PipelineError(ErrorCode.ENGINE_UNAVAILABLE, "The server is still starting; try again shortly.")

    def clear(self, number: int) -> None:
        """That worker has died: what it counted counts no more."""
        self._cells[number * _ROW : (number + 1) * _ROW] = memoryview(bytes(_ROW * _CELL_BYTES)).cast("q")


def _size(count: int) -> int:
    return _NAMES_BYTES + (count * _ROW + 1) * _CELL_BYTES
