"""What timelines say in numbers. Pure: lists of times in, figures out."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.load.job import Timeline


@dataclass(frozen=True)
class Figures:
    """One load. Times in ms; None where there is nothing to tell, such as a gap in a stream of one token."""

    streams: int
    requests: int
    failures: int
    first_failure: str | None
    prompt_tokens: int
    tokens: int  # completion tokens of all answers that did not fail
    is_count_exact: bool
    events: int  # server-sent events, or gRPC responses, with text
    wall_s: float  # from the first request to the last answer
    tokens_per_s: float
    ttft_p50_ms: float | None
    ttft_p99_ms: float | None
    gap_p50_ms: float | None  # between two arrivals of new text in one stream
    gap_p99_ms: float | None
    gap_max_ms: float | None
    latency_p50_ms: float | None  # whole answers
    latency_p99_ms: float | None

    @property
    def tokens_per_event(self) -> float:
        return self.tokens / self.events if self.events else 0.0


def percentile(values: Sequence[float], percent: float) -> float | None:
    """The nearest-rank percentile: a value that was seen, never one between two; None without values."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[max(math.ceil(percent / 100 * len(ordered)), 1) - 1]


def gaps_s(timeline: Timeline) -> list[float]:
    """Seconds between one arrival of text and the next."""
    return [later - earlier for earlier, later in zip(timeline.arrivals_s, timeline.arrivals_s[1:], strict=False)]


def figures_of(timelines: Sequence[Timeline], streams: int) -> Figures:
    """The figures of one load; ValueError for a load without requests."""
    if not timelines:
        raise ValueError("A load without requests has no figures.")
    good = [timeline for timeline in timelines if timeline.failure is None]
    failures = [timeline.failure for timeline in timelines if timeline.failure is not None]
    wall_s = max(timeline.end_s for timeline in timelines) - min(timeline.sent_s for timeline in timelines)
    tokens = sum(timeline.completion_tokens for timeline in good)
    firsts = [timeline.arrivals_s[0] - timeline.sent_s for timeline in good if timeline.arrivals_s]
    gaps = [gap for timeline in good for gap in gaps_s(timeline)]
    latencies = [timeline.end_s - timeline.sent_s for timeline in good]
    return Figures(
        streams=streams,
        requests=len(timelines),
        failures=len(failures),
        first_failure=failures[0] if failures else None,
        prompt_tokens=sum(timeline.prompt_tokens for timeline in good),
        tokens=tokens,
        is_count_exact=all(timeline.is_count_exact for timeline in good),
        events=sum(timeline.events for timeline in good),
        wall_s=round(wall_s, 4),
        tokens_per_s=round(tokens / wall_s, 2) if wall_s > 0 else 0.0,
        ttft_p50_ms=_ms(percentile(firsts, 50)),
        ttft_p99_ms=_ms(percentile(firsts, 99)),
        gap_p50_ms=_ms(percentile(gaps, 50)),
        gap_p99_ms=_ms(percentile(gaps, 99)),
        gap_max_ms=_ms(max(gaps, default=None)),
        latency_p50_ms=_ms(percentile(latencies, 50)),
        latency_p99_ms=_ms(percentile(latencies, 99)),
    )


def median(values: Sequence[float | None]) -> float | None:
    """The median of the values that are there."""
    present = [value for value in values if value is not None]
    return statistics.median(present) if present else None


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)
