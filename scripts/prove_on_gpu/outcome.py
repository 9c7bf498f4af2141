"""Results of steps, as plain data for the report."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class Status(Enum):
    """How a step ended. SKIPPED: this machine lacks something, or the user left something out."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"


class StepFailedError(Exception):
    """The step did not show what it should. `partial` is what it found out before."""

    def __init__(self, message: str, partial: Outcome | None = None) -> None:
        super().__init__(message)
        self.partial = partial or Outcome()


class StepSkippedError(Exception):
    """The step can't run here. The message gives the reason and the fix."""


@dataclass(frozen=True)
class Table:
    """Rows of text for the report."""

    header: tuple[str, ...]
    rows: list[tuple[str, ...]]


@dataclass(frozen=True)
class Outcome:
    """What a step found out: one line, tables, and the same as data."""

    summary: str = ""
    tables: tuple[Table, ...] = ()
    data: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StepResult:
    """One finished step."""

    name: str
    title: str
    status: Status
    duration_s: float
    limit_s: float
    message: str  # the summary, the reason of a failure, or why it was skipped
    outcome: Outcome = field(default_factory=Outcome)
