"""Results of a proof: one phase each, what clients saw, and what must not have happened."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.fleet.traffic import BROKEN, Outcome, Sample
from benchmarks.machine import MachineFacts

LEAST_REQUESTS = 10_000


@dataclass
class Clients:
    """What the clients of a phase saw."""

    requests: int = 0
    retried: int = 0  # requests of which an attempt was refused or not connected, and that succeeded
    refused: int = 0  # requests that failed in spite of their retries
    broken: int = 0  # streams that ended early, with an error event or with their connection
    not_mended: int = 0  # of these: a new request failed, too. Complete when the traffic has ended
    wrong: int = 0  # another text, or another number of tokens
    problems: dict[str, int] = field(default_factory=dict)  # of attempts
    ttft_ms: dict[str, float] = field(default_factory=dict)  # p50, p95, p99
    fingerprints: dict[str, int] = field(default_factory=dict)


@dataclass
class Phase:
    """One phase. Times in seconds since the start of the proof."""

    name: str
    line: str  # what was done
    started_s: float
    ended_s: float = 0.0
    may_break: bool = False  # whether streams may break, because their replica was killed
    clients: Clients = field(default_factory=Clients)
    facts: dict[str, Any] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)  # of its own checks

    def findings(self) -> list[str]:
        """Returns what must not have happened; empty if the phase passed."""
        seen, found = self.clients, list(self.failures)
        if seen.broken and not self.may_break:
            found.append(f"{seen.broken} streams were cut")
        if seen.not_mended:
            found.append(f"{seen.not_mended} streams were cut, and a new request failed as well")
        if seen.refused:
            found.append(f"{seen.refused} requests failed in spite of {_RETRIES_TEXT}")
        if seen.wrong:
            found.append(f"{seen.wrong} streams had another text than the expected one")
        if not seen.requests:
            found.append("no request has ended")
        return found


_RETRIES_TEXT = "two retries"


@dataclass
class Moment:
    """One sample of the fleet, every second."""

    at_s: float
    wished: int
    running: int
    ready: int
    terminating: int
    demand: float | None  # as Prometheus answers the scaler's query
    in_flight: int  # requests of the clients


@dataclass
class Proof:
    """A finished proof."""

    when: str
    commit: str | None
    machine: MachineFacts
    settings: dict[str, Any]
    phases: list[Phase] = field(default_factory=list)
    moments: list[Moment] = field(default_factory=list)
    ttft: list[tuple[float, float, float]] = field(default_factory=list)  # second, p50 and p95 in ms
    scaling: list[dict[str, Any]] = field(default_factory=list)  # each decision of the autoscaler

    @property
    def requests(self) -> int:
        """All requests."""
        return sum(phase.clients.requests for phase in self.phases)

    def findings(self, *, is_full: bool = True) -> dict[str, list[str]]:
        """Returns the findings by phase, of those that did not pass."""
        found = {phase.name: findings for phase in self.phases if (findings := phase.findings())}
        if is_full and self.requests < LEAST_REQUESTS:
            found["all"] = [f"{self.requests:,} requests are too few: {LEAST_REQUESTS:,} are the least"]
        return found


def summarized(samples: Iterable[Sample]) -> Clients:
    """Returns what clients saw."""
    samples = list(samples)
    problems = Counter(problem for sample in samples for problem in sample.problems)
    broken = [sample for sample in samples if sample.outcome in BROKEN]
    first = sorted(sample.first_token_s * 1000 for sample in samples if sample.first_token_s is not None)
    return Clients(
        requests=len(samples),
        retried=sum(bool(sample.problems) and sample.outcome is Outcome.WHOLE for sample in samples),
        refused=sum(sample.outcome in (Outcome.REFUSED, Outcome.NOT_CONNECTED) for sample in samples),
        broken=len(broken),
        not_mended=sum(sample.is_mended is False for sample in broken),
        wrong=sum(sample.outcome is Outcome.WRONG for sample in samples),
        problems=dict(problems.most_common()),
        ttft_ms={f"p{share}": round(percentile(first, share / 100), 1) for share in (50, 95, 99)},
        fingerprints=dict(Counter(sample.fingerprint for sample in samples if sample.fingerprint is not None)),
    )


def percentile(ordered: Sequence[float], share: float) -> float:
    """Returns a percentile of sorted values; 0 without any."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0
