"""An engine is hung when it has work and says nothing; not when it idles, and not when it is slow."""

from __future__ import annotations

import threading
import time

from llm_pipeline.executors.cpu.engine.watchdog import Watchdog

DEADLINE_S = 10.0


def test_work_without_a_sign_of_life_is_a_hang() -> None:
    hung = threading.Event()
    watch = Watchdog(0.05, lambda: True, hung.set)
    assert hung.wait(DEADLINE_S)
    watch.close()


def test_an_idle_engine_is_not_hung() -> None:
    looks, hung = [], threading.Event()
    watch = Watchdog(0.02, lambda: bool(looks.append(1)), hung.set)
    deadline = time.monotonic() + DEADLINE_S
    while len(looks) < 30:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    watch.close()
    assert not hung.is_set()


def test_signs_of_life_keep_it_alive() -> None:
    hung, watch_box = threading.Event(), []
    looks = 0

    def has_work() -> bool:
        nonlocal looks
        looks += 1
        if looks % 5 == 0 and watch_box:  # a slow engine: a step in every fifth look
            watch_box[0].sign_of_life()
        return True

    watch = Watchdog(0.5, has_work, hung.set)
    watch_box.append(watch)
    deadline = time.monotonic() + DEADLINE_S
    while looks < 20:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    watch.close()
    assert not hung.is_set()


def test_a_limit_of_zero_watches_nothing() -> None:
    before = threading.active_count()
    Watchdog(0, lambda: True, lambda: None).close()
    assert threading.active_count() == before
