"""Tokens per second and time to first token at several concurrencies, with the load client of the benchmark."""

from __future__ import annotations

import json
import statistics
import time
from dataclasses import asdict, dataclass

from benchmarks.load.http_recording import CompletionsEndpoint
from benchmarks.load.job import LoadClients, Timeline
from benchmarks.load.point import LoadPoint, make_job
from scripts.prove_on_gpu.context import Context
from scripts.prove_on_gpu.outcome import Outcome, StepFailedError, Table
from scripts.prove_on_gpu.server import API_KEY, Server

_PROMPT_WORDS = 64
_REQUESTS_PER_STREAM = 2


@dataclass(frozen=True)
class Point:
    """One concurrency. A failed response is counted and in no figure."""

    streams: int
    failures: int
    tokens_per_s: float
    ttft_p50_s: float
    ttft_p99_s: float
    gap_p50_s: float  # between pieces of text of one stream


def run(context: Context) -> Outcome:
    """Fails if a request does."""
    server = context.server
    assert server is not None
    points = [_measure(context, server, streams) for streams in context.options.concurrency]
    rows: list[tuple[str, ...]] = [
        (
            str(point.streams),
            f"{point.tokens_per_s:.0f}",
            f"{1000 * point.ttft_p50_s:.0f}",
            f"{1000 * point.ttft_p99_s:.0f}",
            f"{1000 * point.gap_p50_s:.1f}",
            str(point.failures),
        )
        for point in points
    ]
    header = ("streams", "tokens/s", "TTFT p50, ms", "TTFT p99, ms", "gap p50, ms", "failures")
    best = max(points, key=lambda point: point.tokens_per_s)
    summary = f"{best.tokens_per_s:.0f} tokens/s with {best.streams} streams"
    outcome = Outcome(summary, (Table(header, rows),), {"points": [asdict(point) for point in points]})
    if any(point.failures for point in points):
        raise StepFailedError("Requests failed under load.", outcome)
    return outcome


def _measure(context: Context, server: Server, streams: int) -> Point:
    endpoint = CompletionsEndpoint(f"{server.base_url}/v1", server.manifest.model_name, API_KEY)
    load = LoadPoint(streams, context.options.max_tokens, _PROMPT_WORDS, _REQUESTS_PER_STREAM)
    job = make_job(load, seed=f"prove-{streams}")
    clock: list[float] = []

    def tick() -> None:
        clock.append(time.monotonic())

    log = context.logs / f"{context.current_runtime}-load.log"
    with LoadClients(1, "benchmarks.load.http_load", json.dumps(asdict(endpoint)), log_path=log) as clients:
        timelines = clients.run(job, on_start=tick, on_end=tick)
    good = [timeline for timeline in timelines if timeline.failure is None and timeline.arrivals_s]
    if not good:
        raise StepFailedError(f"All {len(timelines)} requests failed: {timelines[0].failure}")
    return _point(streams, good, len(timelines) - len(good), clock[1] - clock[0])


def _point(streams: int, good: list[Timeline], failures: int, wall_s: float) -> Point:
    first = sorted(timeline.arrivals_s[0] - timeline.sent_s for timeline in good)
    gaps = [
        later - earlier
        for timeline in good
        for earlier, later in zip(timeline.arrivals_s, timeline.arrivals_s[1:], strict=False)
    ]
    return Point(
        streams=streams,
        failures=failures,
        tokens_per_s=sum(timeline.completion_tokens for timeline in good) / wall_s,
        ttft_p50_s=statistics.median(first),
        ttft_p99_s=first[max(0, round(0.99 * len(first)) - 1)],
        gap_p50_s=statistics.median(gaps) if gaps else 0.0,
    )
