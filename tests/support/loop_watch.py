"""Measures how long the event loop of a test is held by one piece of work."""

from __future__ import annotations

import asyncio
import time
from types import TracebackType

from typing_extensions import Self

_INTERVAL_S = 0.001


class LoopWatch:
    """A context manager. `longest_s` is the most CPU time of the process between two timers of the loop.

    That of all threads, because one that holds the interpreter's lock holds the loop as well. Not wall time: a test
    must not fail because another process has the processor.
    """

    def __init__(self) -> None:
        self.longest_s = 0.0
        self._last_s = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> Self:
        self._last_s = time.process_time()
        self._tick()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _tick(self) -> None:
        now_s = time.process_time()
        self.longest_s = max(self.longest_s, now_s - self._last_s)
        self._last_s = now_s
        self._timer = asyncio.get_running_loop().call_later(_INTERVAL_S, self._tick)
