"""Samples of the probe by time, and their quantiles."""

from __future__ import annotations

import statistics
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import orjson

from benchmarks.siege.probe import Kind
from benchmarks.siege.target import Target

_STOP_TIMEOUT_S = 10.0
_MAX_ADDED = 100_000  # by the correction of one sample


@dataclass(frozen=True)
class Sample:
    """One measured duration, or a failure with its description. Times are of time.monotonic."""

    kind: Kind
    start_s: float
    end_s: float
    detail: str = ""

    @property
    def duration_ms(self) -> float:
        """Milliseconds from start to end."""
        return (self.end_s - self.start_s) * 1e3


@dataclass(frozen=True)
class Delay:
    """Quantiles of durations in ms. `period_ms` is the usual time between the starts of two samples."""

    p50_ms: float
    p99_ms: float
    longest_ms: float
    count: int
    period_ms: float


def delay(samples: Sequence[Sample], period_ms: float | None = None) -> Delay | None:
    """Returns the quantiles of samples that were taken one after the other; None without any.

    A pause of 10 s is one long sample where a hundred short ones would have been: the median would not show it
    ("coordinated omission"). As in HdrHistogram, a sample therefore counts also for those that should have begun while
    it lasted, one every `period_ms`: the samples' own usual period, or that of a quiet server.
    """
    if not samples:
        return None
    own_ms = _period_ms(samples)
    period_ms = own_ms if period_ms is None else period_ms
    values = sorted(value for sample in samples for value in _corrected(sample.duration_ms, period_ms))
    return Delay(
        p50_ms=_quantile(values, 0.5),
        p99_ms=_quantile(values, 0.99),
        longest_ms=values[-1],
        count=len(samples),
        period_ms=period_ms,
    )


def _period_ms(samples: Sequence[Sample]) -> float:
    starts = [sample.start_s for sample in samples]
    if len(starts) < 2:
        return samples[0].duration_ms
    return statistics.median(after - before for before, after in pairwise(starts)) * 1e3


def _corrected(duration_ms: float, period_ms: float) -> Iterator[float]:
    yield duration_ms
    for number in range(1, min(_MAX_ADDED, int(duration_ms / period_ms) if period_ms > 0 else 0)):
        yield duration_ms - number * period_ms


def _quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class ProbeSamples:
    """The samples of a running probe."""

    def __init__(self) -> None:
        self._samples: list[Sample] = []
        self._lock = threading.Lock()

    def add_line(self, line: bytes) -> None:
        """Adds a line of the probe's output."""
        kind, start_s, end_s, detail = orjson.loads(line)
        with self._lock:
            self._samples.append(Sample(Kind(kind), start_s, end_s, detail))

    def between(self, start_s: float, end_s: float, *kinds: Kind) -> list[Sample]:
        """Returns the samples of these kinds that began in a period, in order of their starts."""
        with self._lock:
            found = [sample for sample in self._samples if sample.kind in kinds and start_s <= sample.start_s < end_s]
        return sorted(found, key=lambda sample: sample.start_s)

    def errors_since(self, start_s: float, end_s: float) -> list[str]:
        """Returns the failures since the start of a phase, of requests that began before its end or before itself."""
        errors = self.between(0.0, end_s, Kind.ERROR)
        return [sample.detail for sample in errors if sample.end_s >= start_s]

    def of_phase(self, start_s: float, end_s: float, kind: Kind) -> list[Sample]:
        """Returns the samples that began in a phase; without any, those that lasted through it."""
        if found := self.between(start_s, end_s, kind):
            return found
        return [sample for sample in self.between(0.0, start_s, kind) if sample.end_s >= end_s]

    def ended_since(self, start_s: float, *kinds: Kind) -> list[Sample]:
        """Returns the samples of these kinds that began and ended since a time, in order."""
        return self.between(start_s, float("inf"), *kinds)


@contextmanager
def running_probe(target: Target) -> Iterator[ProbeSamples]:
    """Runs the probe's process for a block."""
    samples = ProbeSamples()
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.siege.probe"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    output = process.stdout

    def read() -> None:
        for line in output:
            samples.add_line(line)

    reader = threading.Thread(target=read, name="siege-probe", daemon=True)
    try:
        process.stdin.write(target.to_json() + b"\n")
        process.stdin.flush()
        reader.start()
        yield samples
    finally:
        process.stdin.close()
        try:
            process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        reader.join(_STOP_TIMEOUT_S)
        output.close()
