"""Notices an engine process that is there and does nothing although it has work: stopped, or stuck inside a library."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

_log = logging.getLogger(__name__)
_LOOKS = 10  # within the limit


class Watchdog:
    """Calls `on_hang` when the engine had work for `limit_s` and gave no sign of life; 0 never does.

    Time is counted in looks, not by a clock: when this process was stopped itself, the engine is not to blame.
    """

    def __init__(self, limit_s: float, has_work: Callable[[], bool], on_hang: Callable[[], None]) -> None:
        self._period_s = limit_s / _LOOKS
        self._has_work = has_work
        self._on_hang = on_hang
        self._is_alive = False
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="engine-hang-watch", daemon=True)
        if limit_s:
            self._thread.start()

    def sign_of_life(self) -> None:
        """The engine has said something. Cheap, from any thread."""
        self._is_alive = True

    def close(self) -> None:
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)

    def _run(self) -> None:
        silent = 0
        while not self._closed.wait(self._period_s):
            is_alive, self._is_alive = self._is_alive, False
            silent = 0 if is_alive or not self._has_work() else silent + 1
            if silent > _LOOKS:
                _log.error("the engine process has work and makes no step; it is killed")
                self._on_hang()
                silent = 0
