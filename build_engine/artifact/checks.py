"""The result of one check of an engine. A check that could not run has its own outcome."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum


class Outcome(Enum):
    PASSED = "pass"
    FAILED = "fail"
    NOT_CHECKED = "not checked"


@dataclass(frozen=True)
class Check:
    name: str
    outcome: Outcome
    detail: str

    @classmethod
    def of(cls, name: str, has_passed: bool, detail: str) -> Check:
        return cls(name, Outcome.PASSED if has_passed else Outcome.FAILED, detail)

    @classmethod
    def not_made(cls, name: str, reason: str) -> Check:
        return cls(name, Outcome.NOT_CHECKED, reason)

    @property
    def failed(self) -> bool:
        return self.outcome is Outcome.FAILED


def verdict(checks: Iterable[Check]) -> Outcome:
    """The worst outcome: failed, then not checked, then passed."""
    outcomes = {check.outcome for check in checks}
    return next(outcome for outcome in (Outcome.FAILED, Outcome.NOT_CHECKED, Outcome.PASSED) if outcome in outcomes)
