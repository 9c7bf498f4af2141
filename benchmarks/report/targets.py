"""Performance targets of the product, and whether a run has met them. A missed target fails no test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from benchmarks import scenarios
from benchmarks.processes import CLIENT, FRONT_END
from benchmarks.report.figures import median
from benchmarks.report.results import Results, Run, median_of, ratio


class Status(str, Enum):
    """Outcome of a target."""

    PASS = "PASS"
    MISS = "MISS"
    REPORTED = "reported"  # the target has no limit
    NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class PerformanceTarget:
    """One target: the measured value and its limit."""

    name: str
    description: str
    measure: Callable[[Results], float | None]
    unit: str = ""
    at_least: float | None = None
    at_most: float | None = None
    evidence: tuple[str, str, int] | None = None  # scenario, system and streams whose CPU profile explains a miss

    @property
    def limit(self) -> str:
        """The limit as text."""
        if self.at_least is not None:
            return f"≥ {format_number(self.at_least)} {self.unit}".rstrip()
        if self.at_most is not None:
            return f"≤ {format_number(self.at_most)} {self.unit}".rstrip()
        return "as close to 1 as possible"

    def status_of(self, measured: float | None) -> Status:
        """Returns the status of a measured value; None means not measured."""
        if measured is None:
            return Status.NOT_MEASURED
        if self.at_least is not None:
            return Status.PASS if measured >= self.at_least else Status.MISS
        if self.at_most is not None:
            return Status.PASS if measured <= self.at_most else Status.MISS
        return Status.REPORTED


@dataclass(frozen=True)
class Verdict:
    """A target and its outcome in one run."""

    target: PerformanceTarget
    measured: float | None
    status: Status


def judge(results: Results) -> list[Verdict]:
    """Returns the verdict of every target, in order."""
    verdicts = []
    for target in PERFORMANCE_TARGETS:
        measured = target.measure(results)
        verdicts.append(Verdict(target, measured, target.status_of(measured)))
    return verdicts


def format_number(value: float) -> str:
    """Formats a value with three significant digits, or as a whole number: 25,000; 12.3; 0.97."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def tokens_per_s(run: Run) -> float:
    """Returns the throughput of a run."""
    return run.figures.tokens_per_s


def _runs(results: Results, scenario: str, system: str, streams: int) -> list[Run]:
    return results.select(scenario, system, lambda point: point.streams == streams)


def _figure(
    scenario: str, system: str, streams: int, value: Callable[[Run], float | None]
) -> Callable[[Results], float | None]:
    return lambda results: median_of(_runs(results, scenario, system, streams), value)


def _speed_ratio(scenario: str, ours: str, theirs: str, streams: int) -> Callable[[Results], float | None]:
    return lambda results: ratio(
        _runs(results, scenario, ours, streams), _runs(results, scenario, theirs, streams), tokens_per_s
    )


def _added_by_http(value: Callable[[Run], float | None]) -> Callable[[Results], float | None]:
    """Returns HTTP minus raw gRPC at one stream, in pairs from the same repeat."""

    def measure(results: Results) -> float | None:
        direct = {run.repeat: value(run) for run in results.select(scenarios.LATENCY, scenarios.GRPC.name)}
        added = []
        for run in results.select(scenarios.LATENCY, scenarios.HTTP.name):
            ours, theirs = value(run), direct.get(run.repeat)
            if ours is not None and theirs is not None:
                added.append(ours - theirs)
        return median(added)

    return measure


def _front_end_us_per_event(run: Run) -> float | None:
    events = run.figures.events
    return run.cpu_s.get(FRONT_END, 0.0) / events * 1e6 if events else None


def _late_gap_ratio(run: Run) -> float | None:
    middle, late = run.figures.gap_p50_ms, run.figures.gap_p99_ms
    return late / middle if middle and late is not None else None


def memory_growth_percent(run: Run) -> float | None:
    """Returns the growth from the second quarter of a run, when all streams have started, to its last.

    The load client's memory does not count. None if there are too few samples.
    """
    samples = [sum(mib for role, mib in sample.items() if role not in ("s", CLIENT)) for sample in run.memory_over_time]
    quarter = len(samples) // 4
    if quarter == 0:
        return None
    early, late = median(samples[quarter : 2 * quarter]), median(samples[-quarter:])
    return (late - early) / early * 100 if early and late is not None else None


def _events_per_token(run: Run) -> float | None:
    return run.figures.events / run.figures.tokens if run.figures.tokens else None


_HTTP, _OFF, _ENGINE_ONLY, _LLAMA = (
    system.name for system in (scenarios.HTTP, scenarios.HTTP_OFF, scenarios.ENGINE_ONLY, scenarios.LLAMA_CPP)
)
_PACE = f"{scenarios.STEPS_PER_S} steps/s"


def _at(streams: int, value: Callable[[Run], float | None]) -> Callable[[Results], float | None]:
    return _figure(scenarios.THROUGHPUT, _HTTP, streams, value)


def _engine(streams: int, at_least: float) -> PerformanceTarget:
    return PerformanceTarget(
        f"engine-{streams}",
        f"CPU engine, {streams} stream{'s' if streams > 1 else ''}: through HTTP, relative to the engine only",
        _speed_ratio(scenarios.ENGINE, _HTTP, _ENGINE_ONLY, streams),
        at_least=at_least,
        evidence=(scenarios.ENGINE, _HTTP, streams),
    )


def _llama(streams: int, at_least: float | None) -> PerformanceTarget:
    return PerformanceTarget(
        f"llama.cpp-{streams}",
        f"CPU engine through HTTP, relative to llama.cpp's server, {streams} stream{'s' if streams > 1 else ''}",
        _speed_ratio(scenarios.ENGINE, _HTTP, _LLAMA, streams),
        at_least=at_least,
        evidence=(scenarios.ENGINE, _HTTP, streams),
    )


PERFORMANCE_TARGETS = (
    PerformanceTarget(
        "throughput-256",
        f"`scripted` at {_PACE}, 256 streams, through HTTP and the ensemble",
        _at(256, tokens_per_s),
        "tok/s",
        at_least=25_000,
        evidence=(scenarios.THROUGHPUT, _HTTP, 256),
    ),
    PerformanceTarget(
        "coalescing-256",
        "the same, relative to coalescing off",
        _speed_ratio(scenarios.THROUGHPUT, _HTTP, _OFF, 256),
        "times",
        at_least=10,
        evidence=(scenarios.THROUGHPUT, _OFF, 256),
    ),
    PerformanceTarget(
        "throughput-64",
        f"`scripted` at {_PACE}, 64 streams, through HTTP",
        _at(64, tokens_per_s),
        "tok/s",
        at_least=10_000,
        evidence=(scenarios.THROUGHPUT, _HTTP, 64),
    ),
    PerformanceTarget(
        "gap-64",
        "the same: gap between arrivals, p99",
        _at(64, lambda run: run.figures.gap_p99_ms),
        "ms",
        at_most=60,
        evidence=(scenarios.THROUGHPUT, _HTTP, 64),
    ),
    PerformanceTarget(
        "ttft-64",
        "the same: time to first token, p50",
        _at(64, lambda run: run.figures.ttft_p50_ms),
        "ms",
        at_most=40,
        evidence=(scenarios.THROUGHPUT, _HTTP, 64),
    ),
    PerformanceTarget(
        "events-1",
        "1 stream: events per token",
        _at(1, _events_per_token),
        at_least=1,
        evidence=(scenarios.THROUGHPUT, _HTTP, 1),
    ),
    PerformanceTarget(
        "added-ttft",
        "1 stream: time to first token added by HTTP to raw gRPC, p50",
        _added_by_http(lambda run: run.figures.ttft_p50_ms),
        "ms",
        at_most=5,
        evidence=(scenarios.LATENCY, _HTTP, 1),
    ),
    PerformanceTarget(
        "added-gap",
        "1 stream: gap between tokens added by HTTP to raw gRPC, p50",
        _added_by_http(lambda run: run.figures.gap_p50_ms),
        "ms",
        at_most=1,
        evidence=(scenarios.LATENCY, _HTTP, 1),
    ),
    _engine(1, 0.97),
    _engine(16, 0.92),
    _engine(64, 0.90),
    _llama(1, None),
    _llama(16, 2),
    _llama(64, 3),
    PerformanceTarget(
        "front-end-event",
        "front end, CPU time per event, one token per event (coalescing off, 64 streams)",
        _figure(scenarios.THROUGHPUT, _OFF, 64, _front_end_us_per_event),
        "µs",
        at_most=160,
        evidence=(scenarios.THROUGHPUT, _OFF, 64),
    ),
    PerformanceTarget(
        "idle-memory",
        f"{scenarios.MAX_STREAMS} slow streams: growth of the servers' memory",
        _figure(scenarios.IDLE, _HTTP, scenarios.MAX_STREAMS, memory_growth_percent),
        "%",
        at_most=1,
        evidence=(scenarios.IDLE, _HTTP, scenarios.MAX_STREAMS),
    ),
    PerformanceTarget(
        "idle-late",
        f"{scenarios.MAX_STREAMS} slow streams: gap p99 relative to the median gap",
        _figure(scenarios.IDLE, _HTTP, scenarios.MAX_STREAMS, _late_gap_ratio),
        "times",
        at_most=2,
        evidence=(scenarios.IDLE, _HTTP, scenarios.MAX_STREAMS),
    ),
)
