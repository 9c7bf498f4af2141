"""Retry-After follows the pace of completions, whatever happened before."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_pipeline.runtime.retry_after import LONGEST_S, SHORTEST_S, RetryAfterEstimator


class Clock:
    def __init__(self) -> None:
        self.now_s = 50.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def rate(clock: Clock) -> RetryAfterEstimator:
    return RetryAfterEstimator(clock)


def complete(rate: RetryAfterEstimator, clock: Clock, count: int, period_s: float) -> None:
    for _ in range(count):
        clock.now_s += period_s
        rate.completed()


def test_the_wait_is_the_missing_places_over_the_pace(rate: RetryAfterEstimator, clock: Clock) -> None:
    rate.set_busy(True)
    complete(rate, clock, 10, 2.0)
    assert rate.estimate_s(3) == pytest.approx(6.0)


def test_who_is_refused_later_comes_back_later(rate: RetryAfterEstimator, clock: Clock) -> None:
    rate.set_busy(True)
    complete(rate, clock, 10, 2.0)
    assert [rate.estimate_s(1) for _ in range(3)] == pytest.approx([2.0, 4.0, 6.0])
    clock.now_s += 3.0  # one of them may have come back
    complete(rate, clock, 1, 0.0)
    assert rate.estimate_s(1) > 4.0


def test_time_without_work_does_not_count(rate: RetryAfterEstimator, clock: Clock) -> None:
    rate.set_busy(True)
    complete(rate, clock, 10, 2.0)
    rate.set_busy(False)
    clock.now_s += 10_000
    rate.set_busy(True)
    assert rate.estimate_s(3) == pytest.approx(6.0)


def test_what_was_long_ago_does_not_count(rate: RetryAfterEstimator, clock: Clock) -> None:
    rate.set_busy(True)
    complete(rate, clock, 100, 0.1)
    complete(rate, clock, 10, 5.0)
    assert rate.estimate_s(2) == pytest.approx(10.0, rel=0.2)


def test_before_the_first_completion_the_work_so_far_tells(rate: RetryAfterEstimator, clock: Clock) -> None:
    rate.set_busy(True)
    assert rate.estimate_s(1) == SHORTEST_S
    clock.now_s += 10
    assert 10.0 <= rate.estimate_s(1) <= 20.0


def test_many_completions_do_not_make_it_forget_the_window(rate: RetryAfterEstimator, clock: Clock) -> None:
    rate.set_busy(True)
    complete(rate, clock, 5000, 0.001)
    assert rate.estimate_s(4000) == pytest.approx(4.0, rel=0.01)


@given(st.lists(st.tuples(st.sampled_from(["end", "busy", "idle", "ask"]), st.floats(0, 1000)), max_size=60))
def test_the_wait_is_always_within_its_bounds(events: list[tuple[str, float]]) -> None:
    clock = Clock()
    rate = RetryAfterEstimator(clock)
    for event, pause_s in events:
        clock.now_s += pause_s
        if event == "end":
            rate.completed()
        elif event == "ask":
            assert SHORTEST_S <= rate.estimate_s(1) <= LONGEST_S
        else:
            rate.set_busy(event == "busy")
