"""Building blocks for processes that supervise other processes: restart delays, periodic checks, parent death."""

from __future__ import annotations

import ctypes
import logging
import signal
import sys
import threading
from collections.abc import Callable, Sequence

_log = logging.getLogger(__name__)
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_JOIN_TIMEOUT_S = 5.0


class RestartBackoff:
    """Chooses the delay before a restart: longer with each failure in a row, up to the last of `delays_s`.

    Failures stop counting as consecutive after an uptime of more than `stable_s` seconds, or after `reset`. Not
    thread-safe: it belongs to the thread that restarts.
    """

    def __init__(self, delays_s: Sequence[float], *, stable_s: float = float("inf")) -> None:
        self._delays_s = tuple(delays_s)
        self._stable_s = stable_s
        self._failures = 0

    def reset(self) -> None:
        """Treats the next failure as the first one."""
        self._failures = 0

    def next_delay_s(self, uptime_s: float = 0.0) -> float:
        """Counts a failure after `uptime_s` seconds of running, and returns the delay in seconds before the restart."""
        if uptime_s > self._stable_s:
            self._failures = 0
        delay_s = self._delays_s[min(self._failures, len(self._delays_s) - 1)]
        self._failures += 1
        return delay_s


class PeriodicThread:
    """Calls `tick` every `period_s` seconds on a daemon thread, from `start` until `close`.

    An exception in `tick` is logged and does not end the thread: the next call may succeed.
    """

    def __init__(self, tick: Callable[[], None], *, period_s: float, name: str) -> None:
        self._tick = tick
        self._period_s = period_s
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def is_closed(self) -> bool:
        """Whether `close` has been called; a tick that is running may still finish."""
        return self._closed.is_set()

    def start(self) -> None:
        """Starts the thread. The first tick comes after one period."""
        self._thread.start()

    def close(self) -> None:
        """Stops the thread and waits up to 5 s for a running tick. Safe to call before `start` and from a tick."""
        self._closed.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(timeout=_JOIN_TIMEOUT_S)

    def _run(self) -> None:
        while not self._closed.wait(self._period_s):
            try:
                self._tick()
            except Exception:  # noqa: BLE001, PERF203 - the next call may succeed
                _log.exception("a periodic check failed (%s)", self._thread.name)


def end_with_parent() -> None:
    """Makes the calling process receive SIGTERM when its parent dies, even by SIGKILL. Linux only; else a no-op.

    Meant for `preexec_fn`: it makes one system call and takes no lock.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
