"""results.json: the only module that reads and writes it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson

from benchmarks.load.point import LoadPoint
from benchmarks.machine import MachineFacts, Noise
from benchmarks.processes import CLIENT
from benchmarks.report.figures import Figures, median

SCHEMA_VERSION = 1
_BUSY_CLIENT_SHARE = 0.75
# Files of earlier releases are still read.
_FORMER_SYSTEM_KEY = "contender"
_FORMER_SYSTEM_NAMES = {"bare engine": "engine only"}


class ResultsError(Exception):
    """A results file cannot be read. The message names it and the cause."""


@dataclass(frozen=True)
class Run:
    """One load on one system."""

    scenario: str
    system: str
    point: LoadPoint
    repeat: int
    figures: Figures
    cpu_s: dict[str, float]  # by role, during the load
    memory_mib: dict[str, float]  # by role, right after it
    noise: Noise
    memory_over_time: list[dict[str, float]] = field(default_factory=list)  # `s` since the start, MiB by role
    load_processes: int = 1

    def cpu_per_1000_tokens(self, *roles: str) -> float | None:
        """Returns the CPU seconds of these roles, or of all, per 1,000 tokens."""
        if not self.figures.tokens or not self.cpu_s:
            return None
        return sum(self.cpu_s.get(role, 0.0) for role in roles or self.cpu_s) / self.figures.tokens * 1000

    def cpu_per_1000_events(self, *roles: str) -> float | None:
        """Returns the CPU seconds of these roles per 1,000 events; None if none of them took part."""
        if not self.figures.events or not self.cpu_s.keys() & {*roles}:
            return None
        return sum(self.cpu_s.get(role, 0.0) for role in roles) / self.figures.events * 1000

    @property
    def server_roles(self) -> list[str]:
        """The roles of all processes but the load client's; empty for a server that is known by URL only."""
        return [role for role in self.cpu_s if role != CLIENT]

    @property
    def is_client_limited(self) -> bool:
        """Whether the load client was busy for most of the time, so that the load measures the client too."""
        return self.cpu_s.get(CLIENT, 0.0) > _BUSY_CLIENT_SHARE * self.figures.wall_s * self.load_processes


@dataclass(frozen=True)
class Results:
    """One run of the whole benchmark."""

    started_at: str  # ISO 8601, UTC
    duration_s: float
    is_quick: bool
    git_commit: str | None
    machine: MachineFacts
    versions: dict[str, str]
    clients: dict[str, str]  # descriptions of the load clients
    servers: dict[str, str]  # descriptions of the servers, with their settings
    runs: list[Run]
    schema_version: int = SCHEMA_VERSION

    def select(
        self, scenario: str, system: str | None = None, where: Callable[[LoadPoint], bool] = lambda _: True
    ) -> list[Run]:
        """Returns the runs of a scenario in chronological order."""
        return [
            run for run in self.runs if run.scenario == scenario and system in (None, run.system) and where(run.point)
        ]

    def save(self, path: Path) -> None:
        """Writes the file; its directory is created if needed."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(orjson.dumps(asdict(self), option=orjson.OPT_INDENT_2) + b"\n")

    @classmethod
    def load(cls, path: Path) -> Results:
        """Reads a results file. Raises ResultsError if it is missing, malformed, or of another schema version."""
        try:
            fields: dict[str, Any] = orjson.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            raise ResultsError(f"{path} cannot be read: {error}") from error
        if fields.get("schema_version") != SCHEMA_VERSION:
            raise ResultsError(
                f"{path} has schema version {fields.get('schema_version')}; this program reads {SCHEMA_VERSION}. "
                "Run the benchmark again."
            )
        return cls(
            **{
                **fields,
                "machine": MachineFacts(**fields["machine"]),
                "runs": [_run(run) for run in fields["runs"]],
            }
        )


def _run(fields: dict[str, Any]) -> Run:
    system = fields.pop(_FORMER_SYSTEM_KEY, None) or fields["system"]
    return Run(
        **{
            **fields,
            "system": _FORMER_SYSTEM_NAMES.get(system, system),
            "point": LoadPoint(**fields["point"]),
            "figures": Figures(**fields["figures"]),
            "noise": Noise(**fields["noise"]),
        }
    )


def median_of(runs: Iterable[Run], value: Callable[[Run], float | None]) -> float | None:
    """Returns the median over repeats; None if no run has the value."""
    return median([value(run) for run in runs])


def ratio(ours: Iterable[Run], theirs: Iterable[Run], value: Callable[[Run], float | None]) -> float | None:
    """Returns the median over repeats of ours / theirs. Each pair is from the same repeat, seconds apart."""
    their_values = {run.repeat: value(run) for run in theirs}
    ratios = []
    for run in ours:
        our_value, their_value = value(run), their_values.get(run.repeat)
        if our_value is not None and their_value:
            ratios.append(our_value / their_value)
    return median(ratios)
