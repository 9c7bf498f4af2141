"""Limits the requests per minute of an API key, over a moving window that all workers share."""

from __future__ import annotations

import hashlib
import mmap
import time
from pathlib import Path

from frontend.api_key import ApiKey
from frontend.multiprocess.shared_state import SharedState
from llm_pipeline.protocol.errors import ErrorCode, PipelineError

_WINDOW_S = 60.0
_CELL_BYTES = 8
_FOLDER = "rates"


class MovingWindow:
    """Allows at most `limit` hits in any 60 seconds. The memory is a ring buffer of the times of the last hits."""

    def __init__(self, limit: int, memory: mmap.mmap) -> None:
        self._limit = limit
        # float64, [1 + limit]: index of the oldest hit, then the times of the hits in seconds, 0 if unused
        self._cells = memoryview(memory).cast("d")

    @staticmethod
    def size(limit: int) -> int:
        """Size in bytes of the memory of a window."""
        return (1 + limit) * _CELL_BYTES

    def hit(self, now_s: float) -> float:
        """Counts a hit and returns 0, or returns the seconds until the next hit is allowed."""
        index = 1 + int(self._cells[0])
        oldest_s = self._cells[index]
        if oldest_s and now_s - oldest_s < _WINDOW_S:
            return oldest_s + _WINDOW_S - now_s
        self._cells[index] = now_s
        self._cells[0] = index % self._limit
        return 0.0


class RateLimits:
    """The windows of all keys. A key whose limit changes starts a new window."""

    def __init__(self, workers: SharedState) -> None:
        self._workers = workers
        self._windows: dict[tuple[str, int], MovingWindow] = {}
        self._folder = None if workers.folder is None else workers.folder / _FOLDER
        if self._folder is not None:
            self._folder.mkdir(exist_ok=True)

    def count(self, key: ApiKey | None) -> None:
        """Counts one request of a key. Raises PipelineError (429) if the key is at its limit."""
        if key is None or key.requests_per_minute is None:
            return
        window = self._window(key.name, key.requests_per_minute)
        with self._workers.lock():
            wait_s = window.hit(time.monotonic())
        if wait_s:
            raise PipelineError(
                ErrorCode.RATE_LIMIT_EXCEEDED,
                f"This API key is at its rate limit of {key.requests_per_minute} requests per minute. "
                "Retry after the delay in the Retry-After header.",
                retry_after_s=max(wait_s, 1.0),
            )

    def _window(self, name: str, limit: int) -> MovingWindow:
        window = self._windows.get((name, limit))
        if window is None:
            window = self._windows[name, limit] = MovingWindow(limit, self._memory(name, limit))
        return window

    def _memory(self, name: str, limit: int) -> mmap.mmap:
        size = MovingWindow.size(limit)
        if self._folder is None:
            return mmap.mmap(-1, size)
        return _mapped(self._folder / hashlib.blake2b(f"{limit} {name}".encode(), digest_size=16).hexdigest(), size)


def _mapped(path: Path, size: int) -> mmap.mmap:
    with path.open("a+b") as file:  # created by the first worker that needs it
        file.truncate(size)
        return mmap.mmap(file.fileno(), size)
