"""Decode waits while postprocess lags, but never forever."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from llm_pipeline.stages.flow_control import AckSender, SendWindow
from tests.support.clock import Clock

LONG_S = 30.0
SHORT_S = 0.05


@pytest.fixture
def window() -> Iterator[SendWindow]:
    window = SendWindow(size=2, ack_timeout_s=LONG_S)
    yield window
    window.close()


@pytest.fixture
def acks() -> Iterator[AckSender]:
    acks = AckSender()
    yield acks
    acks.close()


def enter(window: SendWindow, entered: threading.Event, count: int = 1) -> None:
    for _ in range(count):
        window.enter()
    entered.set()


def test_a_full_window_waits_for_an_ack(window: SendWindow, acks: AckSender) -> None:
    entered = threading.Event()
    window.enter()
    window.enter()
    with ThreadPoolExecutor(1) as pool:
        third = pool.submit(enter, window, entered)
        assert not entered.wait(SHORT_S)
        acks.send([window.address])
        third.result(timeout=LONG_S / 2)


def test_one_ack_covers_all_chunks_of_a_batch(window: SendWindow, acks: AckSender) -> None:
    for _ in range(100):
        window.enter()
        window.enter()
        acks.send([window.address, window.address])


def test_two_windows_do_not_share_acks(window: SendWindow, acks: AckSender) -> None:
    other, entered = SendWindow(size=1, ack_timeout_s=LONG_S), threading.Event()
    other.enter()
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(enter, other, entered)
        acks.send([window.address])
        assert not entered.wait(SHORT_S)
        acks.send([other.address])
        second.result(timeout=LONG_S / 2)
    other.close()


def test_chunks_that_never_reach_postprocess_time_out() -> None:
    """Triton drops the chunks of a request that it has cancelled; each times out before they fill the window."""
    now = 0.0
    window = SendWindow(size=2, ack_timeout_s=LONG_S, clock=lambda: now)
    done = threading.Event()

    def send_ten() -> None:
        nonlocal now
        for _ in range(10):
            window.enter()
            now += LONG_S
        done.set()

    with ThreadPoolExecutor(1) as pool:
        pool.submit(send_ten)
        assert done.wait(LONG_S / 2)
    window.close()


def test_lost_acks_do_not_hold_chunks_back_forever() -> None:
    """As when postprocess has died."""
    window = SendWindow(size=3, ack_timeout_s=SHORT_S)
    done = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(enter, window, done, 9)
        assert done.wait(LONG_S)
    window.close()


def test_an_ack_to_a_closed_window_is_dropped_without_an_error(acks: AckSender) -> None:
    window = SendWindow()
    window.close()
    acks.send([window.address, "unknown", "x" * 1000, "\ud800"])


def test_unread_acks_do_not_block(window: SendWindow, acks: AckSender) -> None:
    for _ in range(10_000):
        acks.send([window.address])


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def timed(clock: Clock) -> Iterator[SendWindow]:
    window = SendWindow(size=2, ack_timeout_s=SHORT_S, clock=clock)
    yield window
    window.close()


def test_silence_lasts_from_the_first_chunk_without_an_ack(timed: SendWindow, clock: Clock, acks: AckSender) -> None:
    assert timed.silence_s == 0.0
    timed.enter()
    for _ in range(3):
        clock.now_s += 1.0
        timed.enter()
    assert (timed.silence_s, timed.has_lost(3.0), timed.has_lost(2.0)) == (3.0, False, True)
    acks.send([timed.address])
    timed.enter()
    assert timed.silence_s == 0.0


def test_an_ack_that_comes_after_a_pause_of_the_machine_ends_the_silence(
    timed: SendWindow, clock: Clock, acks: AckSender
) -> None:
    timed.enter()
    clock.now_s += 100.0
    timed.enter()
    acks.send([timed.address])
    assert not timed.has_lost(3.0)


def test_chunks_without_an_ack_are_unhandled(timed: SendWindow, clock: Clock, acks: AckSender) -> None:
    assert timed.unhandled_s() == 0.0
    timed.enter()
    clock.now_s += SHORT_S / 2
    timed.enter()
    acks.send([timed.address])
    clock.now_s += 1.0
    assert timed.unhandled_s() == pytest.approx(1.0)
    acks.send([timed.address])
    assert timed.unhandled_s() == 0.0


def test_lost_chunks_may_be_forgotten(timed: SendWindow, clock: Clock) -> None:
    timed.enter()
    clock.now_s += 100.0
    timed.forget_sent()
    assert (timed.silence_s, timed.unhandled_s(), timed.has_lost(1.0)) == (0.0, 0.0, False)
