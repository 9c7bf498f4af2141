"""The watchdog: an engine is hung if it has work and makes no progress, not if it is idle or slow."""

from __future__ import annotations

import threading

from llm_pipeline.executors.cpu.watchdog import Watchdog
from tests.support.waiting import wait_until

DEADLINE_S = 10.0


def test_work_without_progress_is_a_hang() -> None:
    hung = threading.Event()
    watchdog = Watchdog(0.05, lambda: True, hung.set)
    assert hung.wait(DEADLINE_S)
    watchdog.close()


def test_idle_engine_is_not_hung() -> None:
    checks, hung = [], threading.Event()

    def has_work() -> bool:
        checks.append(1)
        return False

    watchdog = Watchdog(0.02, has_work, hung.set)
    wait_until(lambda: len(checks) >= 30, limit_s=DEADLINE_S, what="30 checks")
    watchdog.close()
    assert not hung.is_set()


def test_slow_engine_is_not_hung() -> None:
    checks: list[int] = []
    watchdogs: list[Watchdog] = []
    hung = threading.Event()

    def has_work() -> bool:
        checks.append(1)
        if len(checks) % 5 == 0 and watchdogs:  # a step during every fifth check
            watchdogs[0].record_progress()
        return True

    watchdog = Watchdog(0.5, has_work, hung.set)
    watchdogs.append(watchdog)
    wait_until(lambda: len(checks) >= 20, limit_s=DEADLINE_S, what="20 checks")
    watchdog.close()
    assert not hung.is_set()


def test_timeout_of_zero_starts_no_thread() -> None:
    before = threading.active_count()
    Watchdog(0, lambda: True, lambda: None).close()
    assert threading.active_count() == before
