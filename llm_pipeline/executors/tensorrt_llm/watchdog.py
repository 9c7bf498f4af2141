"""Ends the process if the awaiter thread can't run any more, even if another thread keeps the GIL for ever.

The bindings release the GIL in `await_responses` and `shutdown` only (cpp/tensorrt_llm/nanobind/executor/executor.h at
0243026f): `enqueue_request`, `cancel_request` and `get_latest_iteration_stats` keep it while they wait for a mutex.
Upstream's execution thread holds that of cancellations across MPI broadcasts (executorImpl.cpp at b35ac1b6,
`terminateCancelledRequests`). If a broadcast blocks, because a rank has stopped, then no Python thread of this process
runs again: neither the awaiter, nor its check for a hang, nor the end of the process after a fatal error.
"""

from __future__ import annotations

import faulthandler
import time
from typing import Protocol

_FEED_PERIOD_S = 1.0
_STDERR = 2


class Watchdog(Protocol):
    """Ends the process unless `feed` is called often enough."""

    def feed(self) -> None:
        """Puts the end off. Cheap: may be called many times per second."""

    def stop(self) -> None:
        """Ends the watch. It begins again with the next `feed`."""


class ProcessWatchdog:
    """Ends the process `timeout_s` after the last `feed`, with status 1 and the stacks of all threads on stderr.

    A C thread of faulthandler does it, which needs no GIL. There is one for each process. The stacks are names of files
    and functions: no values.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._period_s = min(_FEED_PERIOD_S, timeout_s / 4)
        self._fed_at = float("-inf")

    def feed(self) -> None:
        now = time.monotonic()
        if now - self._fed_at >= self._period_s:
            self._fed_at = now
            faulthandler.dump_traceback_later(self._timeout_s, exit=True, file=_STDERR)

    def stop(self) -> None:
        self._fed_at = float("-inf")
        faulthandler.cancel_dump_traceback_later()


class NoWatchdog:
    """Watches nothing."""

    def feed(self) -> None:
        """Does nothing."""

    def stop(self) -> None:
        """Does nothing."""
