"""What a run of the benchmark leaves behind: results.json, read and written here alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson

from benchmarks.machine import MachineFacts, Noise
from benchmarks.report.figures import Figures, median
from benchmarks.scenarios import Point

SCHEMA_VERSION = 1


class ResultsError(Exception):
    """A results file that can't be read; the message says which and why."""


@dataclass(frozen=True)
class Run:
    """One load against one contender."""

    scenario: str
    contender: str
    point: Point
    repeat: int
    figures: Figures
    cpu_s: dict[str, float]  # by role, during the load
    memory_mib: dict[str, float]  # by role, right after it
    noise: Noise
    memory_over_time: list[dict[str, float]] = field(default_factory=list)  # s since the start and MiB by role

    def cpu_per_1000_tokens(self, *roles: str) -> float | None:
        """CPU seconds of these roles, or of all, for 1,000 tokens."""
        if not self.figures.tokens or not self.cpu_s:
            return None
        return sum(self.cpu_s.get(role, 0.0) for role in roles or self.cpu_s) / self.figures.tokens * 1000


@dataclass(frozen=True)
class Results:
    """One run of the whole benchmark."""

    started_at: str  # ISO 8601, UTC
    duration_s: float
    is_quick: bool
    git_commit: str | None
    machine: MachineFacts
    versions: dict[str, str]
    clients: dict[str, str]  # what made the load, in words
    servers: dict[str, str]  # what ran with which settings, in words
    runs: list[Run]
    schema_version: int = SCHEMA_VERSION

    def select(
        self, scenario: str, contender: str | None = None, where: Callable[[Point], bool] = lambda _: True
    ) -> list[Run]:
        """The runs of a scenario, in the order in which they were made."""
        return [
            run
            for run in self.runs
            if run.scenario == scenario and contender in (None, run.contender) and where(run.point)
        ]

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(orjson.dumps(asdict(self), option=orjson.OPT_INDENT_2) + b"\n")

    @classmethod
    def load(cls, path: Path) -> Results:
        """ResultsError when there is no such file or it is of another version."""
        try:
            fields: dict[str, Any] = orjson.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            raise ResultsError(f"{path} can't be read: {error}") from error
        if fields.get("schema_version") != SCHEMA_VERSION:
            raise ResultsError(
                f"{path} has schema version {fields.get('schema_version')}; this program reads {SCHEMA_VERSION}. "
                "Run the benchmark again."
            )
        return cls(
            **{
                **fields,
                "machine": MachineFacts(**fields["machine"]),
                "runs": [_run(each) for each in fields["runs"]],
            }
        )


def _run(fields: dict[str, Any]) -> Run:
    return Run(
        **{
            **fields,
            "point": Point(**fields["point"]),
            "figures": Figures(**fields["figures"]),
            "noise": Noise(**fields["noise"]),
        }
    )


def median_of(runs: Iterable[Run], value: Callable[[Run], float | None]) -> float | None:
    """The median over repeats; None when no run has the value."""
    return median([value(run) for run in runs])


def ratio(ours: Iterable[Run], theirs: Iterable[Run], value: Callable[[Run], float | None]) -> float | None:
    """The median over repeats of ours / theirs, each pair from the same repeat, seconds apart."""
    their_values = {run.repeat: value(run) for run in theirs}
    ratios = []
    for run in ours:
        our_value, their_value = value(run), their_values.get(run.repeat)
        if our_value is not None and their_value:
            ratios.append(our_value / their_value)
    return median(ratios)
