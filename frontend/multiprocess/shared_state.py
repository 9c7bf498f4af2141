"""State that the worker processes of one front end share: counters, a lock, heartbeats, a secret, a folder for files.

A front end of one process uses `SharedState.single_process`. The shared memory is a file that all workers map. Each
worker writes only its own row, so a worker that dies leaves nothing half-written, and the supervisor clears its row.
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

_COUNTERS = 65_536  # of the server, its models and its API keys; memory that is not used takes no space
_DIGEST_BYTES = 16  # of a counter's name
_CELL_BYTES = 8
_HEARTBEAT = _COUNTERS  # the last cells of a row: time of the last heartbeat (ns, monotonic), and readiness (0 or 1)
_READY = _COUNTERS + 1
_ROW = _COUNTERS + 2
_NAMES_BYTES = _COUNTERS * _DIGEST_BYTES
_STATE, _LOCK, _SECRET = "state", "lock", "secret"
_SECRET_BYTES = 32
# The lock is held for microseconds. If a worker is suspended while it holds the lock, the others proceed without it, so
# limits may be exceeded for a moment.
_LOCK_TRIES = 200
_LOCK_PAUSE_S = 0.0001


class SharedCounter:
    """A number that all workers add to. Limits apply to its total."""

    __slots__ = ("_cells", "_column", "_own")

    def __init__(self, cells: memoryview[int], column: int, row: int) -> None:
        self._cells = cells
        self._column = column
        self._own = row * _ROW + column

    def add(self, amount: int) -> None:
        """Adds to this worker's part."""
        self._cells[self._own] += amount

    @property
    def total(self) -> int:
        """The sum of the parts of all live workers."""
        return sum(self._cells[self._column :: _ROW].tolist())


class SharedState:
    """One process's view. `number` is the index of this worker, from 0; -1 for the supervisor, which only reads."""

    def __init__(self, number: int, count: int, memory: mmap.mmap, folder: Path | None) -> None:
        self.number = number
        self.count = count
        self.folder = folder  # None in a front end of one process
        self.secret = os.urandom(_SECRET_BYTES) if folder is None else (folder / _SECRET).read_bytes()  # one for all
        self._memory = memory
        self._cells = memoryview(memory)[_NAMES_BYTES:].cast("q")
        self._has_started = count * _ROW  # the index of the last cell
        self._lock_file = -1 if folder is None else os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)

    @classmethod
    def single_process(cls) -> SharedState:
        """The state of a front end of one process, which nothing else shares."""
        return cls(0, 1, mmap.mmap(-1, _size(1)), None)

    @classmethod
    def create(cls, folder: Path, count: int) -> SharedState:
        """Creates the state of `count` workers in an empty folder. Returns the supervisor's view."""
        with (folder / _STATE).open("wb") as file:
            file.truncate(_size(count))
        with os.fdopen(os.open(folder / _SECRET, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as secret:
            secret.write(os.urandom(_SECRET_BYTES))
        return cls.attach(folder, -1, count)

    @classmethod
    def attach(cls, folder: Path, number: int, count: int) -> SharedState:
        """Returns a worker's view. Raises OSError if the supervisor's folder does not exist."""
        with (folder / _STATE).open("r+b") as file:
            return cls(number, count, mmap.mmap(file.fileno(), _size(count)), folder)

    @contextmanager
    def lock(self) -> Iterator[bool]:
        """Excludes the other workers for a moment. Yields whether the lock was acquired within 20 ms.

        The kernel releases the lock if its holder dies.
        """
        if self._lock_file < 0:
            yield True
            return
        is_held = self._try_lock()
        try:
            yield is_held
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
        """Returns the counter with this name, which all workers share. Names must not come from requests.

        Raises RuntimeError after 65,536 names.
        """
        digest = hashlib.blake2b(name.encode(), digest_size=_DIGEST_BYTES).digest()
        first = int.from_bytes(digest[:8], "little")  # hashing with linear probing: there may be thousands of names
        with self.lock():
            for offset in range(_COUNTERS):
                column = (first + offset) % _COUNTERS
                name_cell = slice(column * _DIGEST_BYTES, (column + 1) * _DIGEST_BYTES)
                stored = self._memory[name_cell]
                if stored == digest or not any(stored):
                    self._memory[name_cell] = digest
                    return SharedCounter(self._cells, column, self.number)
        raise RuntimeError(f"more than {_COUNTERS} shared counters")

    def heartbeat(self, *, is_ready: bool) -> None:
        """Records that this worker is alive. Once all workers are ready at the same time, the front end has started."""
        row = self.number * _ROW
        self._cells[row + _HEARTBEAT] = time.monotonic_ns()
        self._cells[row + _READY] = is_ready
        if not self.has_started and all(self._cells[number * _ROW + _READY] for number in range(self.count)):
            self._cells[self._has_started] = 1

    def last_heartbeat_s(self, number: int) -> float:
        """Time of a worker's last heartbeat in seconds (monotonic); 0 before the first."""
        return self._cells[number * _ROW + _HEARTBEAT] / 1e9

    @property
    def has_started(self) -> bool:
        """Whether all workers have ever been ready at the same time. Stays true when a worker dies later."""
        return bool(self._cells[self._has_started])

    def require_started(self) -> None:
        """Raises PipelineError (503) until all workers have been ready: any of them may receive a request."""
        if self.count > 1 and not self.has_started:
            raise PipelineError(ErrorCode.ENGINE_UNAVAILABLE, "The server is starting. Retry the request.")

    def clear(self, number: int) -> None:
        """Clears the counters and the heartbeat of a dead worker."""
        self._cells[number * _ROW : (number + 1) * _ROW] = memoryview(bytes(_ROW * _CELL_BYTES)).cast("q")


def _size(count: int) -> int:
    return _NAMES_BYTES + (count * _ROW + 1) * _CELL_BYTES
