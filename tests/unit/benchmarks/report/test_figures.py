"""Statistics of timelines: percentiles, and figures of loads with failures."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.load.job import Timeline
from benchmarks.report.figures import figures_of, gaps_s, median, median_in_time, percentile


@pytest.mark.parametrize(("percent", "expected"), [(50, 5), (90, 9), (99, 10), (100, 10), (1, 1)])
def test_percentile_is_the_nearest_rank(percent: float, expected: float) -> None:
    assert percentile(list(range(10, 0, -1)), percent) == expected


def test_no_values_have_no_percentile() -> None:
    assert percentile([], 50) is None


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1), st.integers(1, 100))
def test_percentile_is_one_of_the_values_with_enough_values_below(values: list[float], percent: int) -> None:
    found = percentile(values, percent)
    assert found in values
    assert sum(value <= found for value in values) * 100 >= percent * len(values)


def response(sent_s: float, arrivals_s: list[float], tokens: int, failure: str | None = None) -> Timeline:
    return Timeline(
        sent_s=sent_s,
        arrivals_s=arrivals_s,
        events=len(arrivals_s),
        end_s=arrivals_s[-1] if arrivals_s else sent_s,
        prompt_tokens=3,
        completion_tokens=tokens,
        finish_reason=None if failure else "length",
        failure=failure,
    )


def test_figures_span_first_request_to_last_response() -> None:
    figures = figures_of([response(10.0, [10.1, 10.2, 10.5], 4), response(10.5, [11.0, 12.0], 6)], streams=2)
    assert figures.wall_s == 2.0
    assert figures.tokens_per_s == 5.0
    assert figures.ttft_p50_ms == 100.0
    assert figures.ttft_p99_ms == 500.0
    assert figures.gap_max_ms == 1000.0
    assert figures.latency_p50_ms == 500.0
    assert figures.tokens_per_event == 2.0


def test_failed_responses_count_as_failures_and_not_as_tokens() -> None:
    figures = figures_of([response(0.0, [1.0], 10), response(0.0, [4.0], 99, "status 500")], streams=2)
    assert (figures.failures, figures.first_failure, figures.tokens) == (1, "status 500", 10)
    assert figures.tokens_per_s == 2.5  # the failed response's time still counts


def test_load_without_successful_response_has_figures() -> None:
    figures = figures_of([response(1.0, [], 0, "no response")], streams=1)
    assert (figures.tokens_per_s, figures.ttft_p50_ms, figures.gap_p99_ms) == (0.0, None, None)


def test_load_without_requests_is_rejected() -> None:
    with pytest.raises(ValueError, match="without requests"):
        figures_of([], streams=1)


def test_gaps_are_the_times_between_arrivals() -> None:
    assert gaps_s(response(0.0, [1.0, 1.5, 3.0], 3)) == [0.5, 1.5]


def test_gap_at_a_random_moment_is_the_one_that_most_of_the_time_is_spent_in() -> None:
    assert median_in_time([0.001] * 9 + [1.0]) == 1.0
    assert median_in_time([0.5] * 10) == 0.5
    assert median_in_time([]) is None


@given(st.lists(st.floats(min_value=0.001, max_value=100), min_size=1))
def test_median_in_time_is_never_below_the_median(values: list[float]) -> None:
    ordered = sorted(values)
    assert median_in_time(ordered) in values
    assert (median_in_time(ordered) or 0) >= (percentile(ordered, 50) or 0)


def test_median_ignores_none() -> None:
    assert median([None, 3.0, 1.0, 2.0]) == 2.0
    assert median([None]) is None
