"""What the product promises about its speed, and whether a run of the benchmark has seen it. Never fails a test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from benchmarks import scenarios
from benchmarks.processes import CLIENT, FRONT_END
from benchmarks.report.figures import median
from benchmarks.report.results import Results, Run, median_of, ratio


class Status(str, Enum):
    """How a target fared."""

    PASS = "PASS"
    MISS = "MISS"
    REPORTED = "reported"  # there is no limit to hold it against
    NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Target:
    """One promise: what is measured, and the limit on its good side."""

    name: str
    what: str
    measure: Callable[[Results], float | None]
    unit: str = ""
    at_least: float | None = None
    at_most: float | None = None
    evidence: tuple[str, str, int] | None = None  # scenario, contender, streams: whose profile says why

    @property
    def goal(self) -> str:
        """The limit in words."""
        if self.at_least is not None:
            return f"≥ {number(self.at_least)} {self.unit}".rstrip()
        if self.at_most is not None:
            return f"≤ {number(self.at_most)} {self.unit}".rstrip()
        return "as near to 1 as can be"

    def status_of(self, measured: float | None) -> Status:
        """Of a value that was measured, or was not."""
        if measured is None:
            return Status.NOT_MEASURED
        if self.at_least is not None:
            return Status.PASS if measured >= self.at_least else Status.MISS
        if self.at_most is not None:
            return Status.PASS if measured <= self.at_most else Status.MISS
        return Status.REPORTED


@dataclass(frozen=True)
class Verdict:
    """A target and what one run of the benchmark says about it."""

    target: Target
    measured: float | None
    status: Status


def judge(results: Results) -> list[Verdict]:
    """Every target in order."""
    verdicts = []
    for target in TARGETS:
        measured = target.measure(results)
        verdicts.append(Verdict(target, measured, target.status_of(measured)))
    return verdicts


def number(value: float) -> str:
    """Three digits that count, or the whole number: 25,000; 12.3; 0.97."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def tokens_per_s(run: Run) -> float:
    return run.figures.tokens_per_s


def _runs(results: Results, scenario: str, contender: str, streams: int) -> list[Run]:
    return results.select(scenario, contender, lambda point: point.streams == streams)


def _figure(
    scenario: str, contender: str, streams: int, value: Callable[[Run], float | None]
) -> Callable[[Results], float | None]:
    return lambda results: median_of(_runs(results, scenario, contender, streams), value)


def _speed_ratio(scenario: str, ours: str, theirs: str, streams: int) -> Callable[[Results], float | None]:
    return lambda results: ratio(
        _runs(results, scenario, ours, streams), _runs(results, scenario, theirs, streams), tokens_per_s
    )


def _added(value: Callable[[Run], float | None]) -> Callable[[Results], float | None]:
    """HTTP minus raw gRPC at one stream, each pair from the same repeat."""

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


def _late(run: Run) -> float | None:
    middle, late = run.figures.gap_p50_ms, run.figures.gap_p99_ms
    return late / middle if middle and late is not None else None


def memory_growth_percent(run: Run) -> float | None:
    """From the second quarter of a run, when all streams have begun, to its last; the client's own is left out."""
    samples = [sum(mib for role, mib in sample.items() if role not in ("s", CLIENT)) for sample in run.memory_over_time]
    quarter = len(samples) // 4
    if quarter == 0:
        return None
    early, late = median(samples[quarter : 2 * quarter]), median(samples[-quarter:])
    return (late - early) / early * 100 if early and late is not None else None


def _evented(run: Run) -> float | None:
    return run.figures.events / run.figures.tokens if run.figures.tokens else None


_HTTP, _OFF, _BARE, _LLAMA = (
    each.name for each in (scenarios.HTTP, scenarios.HTTP_OFF, scenarios.BARE, scenarios.LLAMA_CPP)
)
_PACE = f"{scenarios.STEPS_PER_S} steps/s"


def _at(streams: int, value: Callable[[Run], float | None]) -> Callable[[Results], float | None]:
    return _figure(scenarios.THROUGHPUT, _HTTP, streams, value)


def _engine(streams: int, at_least: float) -> Target:
    return Target(
        f"engine-{streams}",
        f"CPU engine, {streams} stream{'s' if streams > 1 else ''}: through HTTP over the bare engine in one process",
        _speed_ratio(scenarios.ENGINE, _HTTP, _BARE, streams),
        at_least=at_least,
        evidence=(scenarios.ENGINE, _HTTP, streams),
    )


def _llama(streams: int, at_least: float | None) -> Target:
    return Target(
        f"llama.cpp-{streams}",
        f"CPU engine through HTTP over llama.cpp's server, {streams} stream{'s' if streams > 1 else ''}",
        _speed_ratio(scenarios.ENGINE, _HTTP, _LLAMA, streams),
        at_least=at_least,
        evidence=(scenarios.ENGINE, _HTTP, streams),
    )


TARGETS = (
    Target(
        "throughput-256",
        f"`scripted` at {_PACE}, 256 streams, through HTTP and the whole ensemble",
        _at(256, tokens_per_s),
        "tok/s",
        at_least=25_000,
        evidence=(scenarios.THROUGHPUT, _HTTP, 256),
    ),
    Target(
        "coalescing-256",
        "the same over coalescing off",
        _speed_ratio(scenarios.THROUGHPUT, _HTTP, _OFF, 256),
        "times",
        at_least=10,
        evidence=(scenarios.THROUGHPUT, _OFF, 256),
    ),
    Target(
        "throughput-64",
        f"`scripted` at {_PACE}, 64 streams, through HTTP",
        _at(64, tokens_per_s),
        "tok/s",
        at_least=10_000,
        evidence=(scenarios.THROUGHPUT, _HTTP, 64),
    ),
    Target(
        "gap-64",
        "the same: gap between arrivals, p99",
        _at(64, lambda run: run.figures.gap_p99_ms),
        "ms",
        at_most=60,
        evidence=(scenarios.THROUGHPUT, _HTTP, 64),
    ),
    Target(
        "ttft-64",
        "the same: time to first token, p50",
        _at(64, lambda run: run.figures.ttft_p50_ms),
        "ms",
        at_most=40,
        evidence=(scenarios.THROUGHPUT, _HTTP, 64),
    ),
    Target(
        "events-1",
        "1 stream: events per token",
        _at(1, _evented),
        at_least=1,
        evidence=(scenarios.THROUGHPUT, _HTTP, 1),
    ),
    Target(
        "added-ttft",
        "1 stream: time to first token over raw gRPC, p50",
        _added(lambda run: run.figures.ttft_p50_ms),
        "ms",
        at_most=5,
        evidence=(scenarios.LATENCY, _HTTP, 1),
    ),
    Target(
        "added-gap",
        "1 stream: gap between tokens over raw gRPC, p50",
        _added(lambda run: run.figures.gap_p50_ms),
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
    Target(
        "front-end-event",
        "front end, CPU time per event, one token per event (coalescing off, 64 streams)",
        _figure(scenarios.THROUGHPUT, _OFF, 64, _front_end_us_per_event),
        "µs",
        at_most=160,
        evidence=(scenarios.THROUGHPUT, _OFF, 64),
    ),
    Target(
        "idle-memory",
        f"{scenarios.MOST_STREAMS} slow streams: growth of the servers' memory",
        _figure(scenarios.IDLE, _HTTP, scenarios.MOST_STREAMS, memory_growth_percent),
        "%",
        at_most=1,
        evidence=(scenarios.IDLE, _HTTP, scenarios.MOST_STREAMS),
    ),
    Target(
        "idle-late",
        f"{scenarios.MOST_STREAMS} slow streams: gap p99 over the median gap",
        _figure(scenarios.IDLE, _HTTP, scenarios.MOST_STREAMS, _late),
        "times",
        at_most=2,
        evidence=(scenarios.IDLE, _HTTP, scenarios.MOST_STREAMS),
    ),
)
