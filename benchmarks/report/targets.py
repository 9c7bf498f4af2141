"""Performance targets of the product, and whether a run has met them. A missed target fails no test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from operator import attrgetter

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
    min_cores: int = 1  # on smaller machines it is not judged

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
        measured = target.measure(results) if results.machine.cores >= target.min_cores else None
        verdicts.append(Verdict(target, measured, target.status_of(measured)))
    return verdicts


def format_number(value: float) -> str:
    """Formats a value with three significant digits, or as a whole number: 25,000; 12.3; 0.97."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def tokens_per_s(run: Run) -> float:
    """Returns the throughput of a run."""
    return run.figures.tokens_per_s


def events_per_s(run: Run) -> float:
    """Returns the events of all streams of a run per second."""
    return run.figures.events_per_s


def servers_cpu_per_1000_events(run: Run) -> float | None:
    """Returns the CPU seconds of all processes but the load client; None for a server that is known by URL only."""
    return run.cpu_per_1000_events(*run.server_roles)


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
    seconds = run.cpu_per_1000_events(FRONT_END)
    return None if seconds is None else seconds * 1000


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


_MANY_CORES = 16
_MANY_WORKERS = scenarios.http_system(8).name


@dataclass(frozen=True)
class _Load:
    """A load whose figures have targets."""

    scenario: str
    system: str
    streams: int
    title: str
    min_cores: int = 1

    def target(
        self,
        name: str,
        what: str,
        value: Callable[[Run], float | None],
        unit: str = "",
        *,
        at_least: float | None = None,
        at_most: float | None = None,
    ) -> PerformanceTarget:
        """Returns a target for one figure of the load."""
        return PerformanceTarget(
            f"{name}-{self.streams}" if self.min_cores == 1 else f"{name}-{self.streams}-{self.min_cores}-cores",
            f"{self.title}: {what}",
            _figure(self.scenario, self.system, self.streams, value),
            unit,
            at_least,
            at_most,
            (self.scenario, self.system, self.streams),
            self.min_cores,
        )

    def tokens(self, at_least: float) -> PerformanceTarget:
        """Returns the target of its throughput."""
        return self.target("throughput", "throughput", tokens_per_s, "tok/s", at_least=at_least)

    def events(self, at_least: float) -> PerformanceTarget:
        """Returns the target of its events."""
        return self.target("events", "events", events_per_s, "events/s", at_least=at_least)

    def time(self, figure: str, title: str, at_most: float) -> PerformanceTarget:
        """Returns the target of a time among its figures, such as `gap_p99_ms`."""
        return self.target(
            figure.removesuffix("_ms").replace("_", "-"), title, attrgetter(f"figures.{figure}"), "ms", at_most=at_most
        )


def _load_of_throughput(streams: int) -> _Load:
    title = f"`scripted` at {_PACE}, {streams} stream{'s' if streams > 1 else ''} through HTTP"
    return _Load(scenarios.THROUGHPUT, _HTTP, streams, title)


_ONE, _64, _256 = (_load_of_throughput(streams) for streams in (1, 64, 256))
_READING = _Load(
    scenarios.READING,
    _HTTP,
    scenarios.READING_STREAMS,
    f"{scenarios.READING_STREAMS:,} streams of {scenarios.READING_STEPS_PER_S} steps/s, "
    f"{scenarios.READING_TOKENS} tokens each",
)
_LONG_256, _LONG_1024 = (
    _Load(
        scenarios.LONG,
        _MANY_WORKERS,
        streams,
        f"{_MANY_CORES} cores, 8 workers, one Triton, {streams:,} long streams at {_PACE}",
        _MANY_CORES,
    )
    for streams in (256, 1024)
)


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
    _64.tokens(12_300),
    _64.events(11_000),
    _64.time("gap_p50_ms", "gap between arrivals, p50", 6),
    _64.time("gap_p99_ms", "gap between arrivals, p99", 25),
    _64.time("ttft_p50_ms", "time to first token, p50", 45),
    _256.tokens(45_000),
    _256.events(15_000),
    _256.time("gap_p50_ms", "gap between arrivals, p50", 15),
    _256.time("gap_p99_ms", "gap between arrivals, p99", 70),
    _256.time("ttft_p50_ms", "time to first token, p50", 150),
    PerformanceTarget(
        "coalescing-256",
        "the same, throughput relative to coalescing off",
        _speed_ratio(scenarios.THROUGHPUT, _HTTP, _OFF, 256),
        "times",
        at_least=10,
        evidence=(scenarios.THROUGHPUT, _OFF, 256),
    ),
    _READING.tokens(45_000),
    _READING.time("gap_p50_ms", "gap between arrivals, p50", 60),
    _READING.time("gap_p99_ms", "gap between arrivals, p99", 250),
    _ONE.target("events-per-token", "events per token", _events_per_token, at_least=1),
    PerformanceTarget(
        "added-ttft",
        "1 stream: time to first token added by HTTP to raw gRPC, p50",
        _added_by_http(lambda run: run.figures.ttft_p50_ms),
        "ms",
        at_most=3,
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
    _engine(16, 0.95),
    _engine(64, 0.94),
    _llama(1, None),
    _llama(16, 2),
    _llama(64, 3),
    _64.target(
        "cpu-of-events",
        "CPU time for 1,000 events, all processes but the load client",
        servers_cpu_per_1000_events,
        "s",
        at_most=0.08,
    ),
    _64.target("front-end-event", "front end, CPU time for an event", _front_end_us_per_event, "µs", at_most=30),
    _LONG_256.tokens(50_500),
    _LONG_256.time("gap_p50_ms", "gap between arrivals, p50", 7),
    _LONG_1024.tokens(195_000),
    _LONG_1024.time("gap_p50_ms", "gap between arrivals, p50", 15),
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
