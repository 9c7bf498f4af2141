"""decode waits while postprocess is behind, and never for ever."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from llm_pipeline.stages.flow_control import AckSender, SendWindow

LONG_S = 30.0
SHORT_S = 0.05


@pytest.fixture
def window() -> Iterator[SendWindow]:
    window = SendWindow(size=2, patience_s=LONG_S)
    yield window
    window.close()


@pytest.fixture
def reports() -> Iterator[AckSender]:
    reports = AckSender()
    yield reports
    reports.close()


def test_a_full_window_waits_for_a_report(window: SendWindow, reports: AckSender) -> None:
    entered = threading.Event()
    window.enter()
    window.enter()
    with ThreadPoolExecutor(1) as pool:
        third = pool.submit(lambda: (window.enter(), entered.set()))
        assert not entered.wait(SHORT_S)
        reports.send([window.address])
        third.result(timeout=LONG_S / 2)


def test_one_report_stands_for_all_chunks_of_a_batch(window: SendWindow, reports: AckSender) -> None:
    for _ in range(100):
        window.enter()
        window.enter()
        reports.send([window.address, window.address])


def test_two_windows_do_not_share_reports(window: SendWindow, reports: AckSender) -> None:
    other, entered = SendWindow(size=1, patience_s=LONG_S), threading.Event()
    other.enter()
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(lambda: (other.enter(), entered.set()))
        reports.send([window.address])
        assert not entered.wait(SHORT_S)
        reports.send([other.address])
        second.result(timeout=LONG_S / 2)
    other.close()


def test_chunks_that_never_reach_postprocess_keep_nobody_waiting() -> None:
    """Those of a request that Triton cancelled, now and then: each ages out before they fill the window."""
    now = 0.0
    window = SendWindow(size=2, patience_s=LONG_S, clock=lambda: now)
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


def test_lost_reports_do_not_hold_chunks_back_for_ever() -> None:
    """As when postprocess died."""
    window = SendWindow(size=3, patience_s=SHORT_S)
    done = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(lambda: ([window.enter() for _ in range(9)], done.set()))
        assert done.wait(LONG_S)
    window.close()


def test_a_report_to_a_window_that_is_gone_is_lost_without_an_error(reports: AckSender) -> None:
    window = SendWindow()
    window.close()
    reports.send([window.address, "never there", "x" * 1000, "\ud800"])


def test_reports_that_nobody_reads_do_not_block(window: SendWindow, reports: AckSender) -> None:
    for _ in range(10_000):
        reports.send([window.address])
