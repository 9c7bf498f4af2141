"""Statistics of timelines."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.load.job import Timeline


@dataclass(frozen=True)
class Figures:
    """Figures of one load. Times are in ms; None if there is no value, such as the gap in a stream of one token."""

    streams: int
    requests: int
    failures: int
    first_failure: str | None
    prompt_tokens: int
    tokens: int  # completion tokens of all successful responses
    is_count_exact: bool
    events: int  # server-sent events, or gRPC responses, with text
    wall_s: float  # from the first request to the end of the last response
    tokens_per_s: float
    ttft_p50_ms: float | None
    ttft_p99_ms: float | None
    gap_p50_ms: float | None  # between two arrivals of new text in one stream
    gap_p99_ms: float | None
    gap_max_ms: float | None
    latency_p50_ms: float | None  # of whole responses
    latency_p99_ms: float | None

    @property
    def tokens_per_event(self) -> float:
        """Mean number of tokens per event."""
        return self.tokens / self.events if self.events else 0.0

    @property
    def events_per_s(self) -> float:
        """Events of all streams per second."""
        return self.events / self.wall_s if self.wall_s else 0.0


def percentile(values: Sequence[float], percent: float) -> float | None:
    """Returns the nearest-rank percentile, which is always one of the values; None without values."""
    return percentile_of_sorted(sorted(values), percent)


def percentile_of_sorted(ordered: Sequence[float], percent: float) -> float | None:
    """Returns the same for values in ascending order, of which a load may have millions."""
    if not ordered:
        return None
    return ordered[max(math.ceil(percent / 100 * len(ordered)), 1) - 1]


def gaps_s(timeline: Timeline) -> list[float]:
    """Returns the seconds between consecutive arrivals of text."""
    return [later - earlier for earlier, later in zip(timeline.arrivals_s, timeline.arrivals_s[1:], strict=False)]


def figures_of(timelines: Sequence[Timeline], streams: int) -> Figures:
    """Returns the figures of one load. Raises ValueError for a load without requests."""
    if not timelines:
        raise ValueError("A load without requests has no figures.")
    successful = [timeline for timeline in timelines if timeline.failure is None]
    failures = [timeline.failure for timeline in timelines if timeline.failure is not None]
    wall_s = max(timeline.end_s for timeline in timelines) - min(timeline.sent_s for timeline in timelines)
    tokens = sum(timeline.completion_tokens for timeline in successful)
    firsts = [timeline.arrivals_s[0] - timeline.sent_s for timeline in successful if timeline.arrivals_s]
    gaps = sorted(gap for timeline in successful for gap in gaps_s(timeline))
    latencies = [timeline.end_s - timeline.sent_s for timeline in successful]
    return Figures(
        streams=streams,
        requests=len(timelines),
        failures=len(failures),
        first_failure=failures[0] if failures else None,
        prompt_tokens=sum(timeline.prompt_tokens for timeline in successful),
        tokens=tokens,
        is_count_exact=all(timeline.is_count_exact for timeline in successful),
        events=sum(timeline.events for timeline in successful),
        wall_s=round(wall_s, 4),
        tokens_per_s=round(tokens / wall_s, 2) if wall_s > 0 else 0.0,
        ttft_p50_ms=_ms(percentile(firsts, 50)),
        ttft_p99_ms=_ms(percentile(firsts, 99)),
        gap_p50_ms=_ms(percentile_of_sorted(gaps, 50)),
        gap_p99_ms=_ms(percentile_of_sorted(gaps, 99)),
        gap_max_ms=_ms(gaps[-1] if gaps else None),
        latency_p50_ms=_ms(percentile(latencies, 50)),
        latency_p99_ms=_ms(percentile(latencies, 99)),
    )


def median(values: Sequence[float | None]) -> float | None:
    """Returns the median of the values that are not None; None if there are none."""
    present = [value for value in values if value is not None]
    return statistics.median(present) if present else None


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)
