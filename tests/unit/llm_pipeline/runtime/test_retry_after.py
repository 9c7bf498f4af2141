"""Retry-After follows the recent rate of completions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_pipeline.runtime.retry_after import LONGEST_S, SHORTEST_S, RetryAfterEstimator
from tests.support.clock import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock(50.0)


@pytest.fixture
def estimator(clock: Clock) -> RetryAfterEstimator:
    return RetryAfterEstimator(clock)


def complete(estimator: RetryAfterEstimator, clock: Clock, count: int, period_s: float) -> None:
    for _ in range(count):
        clock.now_s += period_s
        estimator.completed()


def test_the_delay_is_the_excess_over_the_rate(estimator: RetryAfterEstimator, clock: Clock) -> None:
    estimator.set_busy(True)
    complete(estimator, clock, 10, 2.0)
    assert estimator.estimate_s(3) == pytest.approx(6.0)


def test_a_client_that_is_rejected_later_retries_later(estimator: RetryAfterEstimator, clock: Clock) -> None:
    estimator.set_busy(True)
    complete(estimator, clock, 10, 2.0)
    assert [estimator.estimate_s(1) for _ in range(3)] == pytest.approx([2.0, 4.0, 6.0])
    clock.now_s += 3.0  # one of them may have retried
    complete(estimator, clock, 1, 0.0)
    assert estimator.estimate_s(1) > 4.0


def test_idle_time_does_not_count(estimator: RetryAfterEstimator, clock: Clock) -> None:
    estimator.set_busy(True)
    complete(estimator, clock, 10, 2.0)
    estimator.set_busy(False)
    clock.now_s += 10_000
    estimator.set_busy(True)
    assert estimator.estimate_s(3) == pytest.approx(6.0)


def test_completions_before_the_window_do_not_count(estimator: RetryAfterEstimator, clock: Clock) -> None:
    estimator.set_busy(True)
    complete(estimator, clock, 100, 0.1)
    complete(estimator, clock, 10, 5.0)
    assert estimator.estimate_s(2) == pytest.approx(10.0, rel=0.2)


def test_before_the_first_completion_the_busy_time_is_the_estimate(
    estimator: RetryAfterEstimator, clock: Clock
) -> None:
    estimator.set_busy(True)
    assert estimator.estimate_s(1) == SHORTEST_S
    clock.now_s += 10
    assert 10.0 <= estimator.estimate_s(1) <= 20.0


def test_more_completions_than_are_remembered_still_give_the_rate(estimator: RetryAfterEstimator, clock: Clock) -> None:
    estimator.set_busy(True)
    complete(estimator, clock, 5000, 0.001)
    assert estimator.estimate_s(4000) == pytest.approx(4.0, rel=0.01)


@given(st.lists(st.tuples(st.sampled_from(["complete", "busy", "idle", "reject"]), st.floats(0, 1000)), max_size=60))
def test_the_delay_is_always_within_its_bounds(events: list[tuple[str, float]]) -> None:
    clock = Clock(50.0)
    estimator = RetryAfterEstimator(clock)
    for event, pause_s in events:
        clock.now_s += pause_s
        if event == "complete":
            estimator.completed()
        elif event == "reject":
            assert SHORTEST_S <= estimator.estimate_s(1) <= LONGEST_S
        else:
            estimator.set_busy(event == "busy")
