"""Detects a hung engine process: one that is alive and has work, but is stopped or stuck inside a library."""

from __future__ import annotations

import logging
from collections.abc import Callable

from llm_pipeline.runtime.subprocesses import PeriodicThread

_log = logging.getLogger(__name__)
_CHECKS_PER_TIMEOUT = 10


class Watchdog:
    """Calls `on_hang` if the engine has work but makes no progress for `timeout_s` seconds; 0 switches it off.

    Time is counted in checks, not by a clock: the engine is not at fault when this process was itself suspended.
    """

    def __init__(self, timeout_s: float, has_work: Callable[[], bool], on_hang: Callable[[], None]) -> None:
        self._has_work = has_work
        self._on_hang = on_hang
        self._has_progress = False
        self._checks_without_progress = 0
        self._thread = PeriodicThread(self._check, period_s=timeout_s / _CHECKS_PER_TIMEOUT, name="engine-watchdog")
        if timeout_s:
            self._thread.start()

    def record_progress(self) -> None:
        """Restarts the timeout: a step came, or work for an engine that had none. Cheap, from any thread."""
        self._has_progress = True

    def close(self) -> None:
        """Stops the checks."""
        self._thread.close()

    def _check(self) -> None:
        has_progress, self._has_progress = self._has_progress, False
        if has_progress or not self._has_work():
            self._checks_without_progress = 0
            return
        self._checks_without_progress += 1
        if self._checks_without_progress > _CHECKS_PER_TIMEOUT:
            self._checks_without_progress = 0
            _log.error("the engine process has work but makes no progress; killing it")
            self._on_hang()
