"""Results of a siege: one phase each, what is allowed, and the findings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from benchmarks.machine import MachineFacts
from benchmarks.siege.samples import Delay
from benchmarks.siege.watch import Resources

ALLOWED_DELAY_MS = 50.0  # of p99, beyond the quiet server's
ALLOWED_MEMORY_MIB = 4096.0  # beyond the quiet server's: the processes of guides have a limit of their own
ALLOWED_DESCRIPTORS = 64  # more after a phase than before it
ALLOWED_RECOVERY_S = 5.0
QUIET = "quiet"
ALL_TOGETHER = "all together"


@dataclass
class PhaseResult:
    """What the probe and the processes showed in one phase."""

    name: str
    line: str
    seconds: float
    ttft: Delay | None = None
    guided_ttft: Delay | None = None
    gap: Delay | None = None
    probe_errors: list[str] = field(default_factory=list)
    checks: int = 0  # of readiness
    not_ready: list[str] = field(default_factory=list)
    resources: Resources = field(default_factory=Resources)
    descriptors_after: dict[str, int] = field(default_factory=dict)
    outcomes: dict[str, dict[str, int]] = field(default_factory=dict)  # by attack
    unexpected: dict[str, dict[str, int]] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)
    recovery_s: float | None = 0.0  # until the probe's TTFT was as before; None: the stack had to be restarted
    notes: list[str] = field(default_factory=list)
    has_guides: bool = True  # whether the probe sends guided requests

    @property
    def delays(self) -> dict[str, Delay | None]:
        """The probe's delays by name."""
        guided = {"guided TTFT": self.guided_ttft} if self.has_guides else {}
        return {"TTFT": self.ttft, **guided, "gap": self.gap}

    def refusals(self) -> dict[str, int]:
        """Returns the number of refused hostile requests by status and code, all attacks together."""
        refusals: dict[str, int] = {}
        for outcomes in self.outcomes.values():
            for outcome, count in outcomes.items():
                if outcome[:1] in {"4", "5"}:
                    refusals[outcome] = refusals.get(outcome, 0) + count
        return refusals


def findings(phase: PhaseResult, quiet: PhaseResult) -> list[str]:
    """Returns what a client felt in a phase that it must not feel; empty if the phase passed."""
    found = [*_slow(phase, quiet), *phase.notes, *phase.resources.restarts]
    if phase.probe_errors:
        found.append(f"{len(phase.probe_errors)} requests of the probe failed, such as: {phase.probe_errors[0]}")
    if phase.not_ready:
        found.append(f"{len(phase.not_ready)} of {phase.checks} readiness checks failed: {phase.not_ready[0]}")
    for attack, outcomes in phase.unexpected.items():
        found += [f"{attack}: {count} requests ended with: {outcome}" for outcome, count in outcomes.items()]
    grown = phase.resources.peak_memory_mib - quiet.resources.peak_memory_mib
    if grown > ALLOWED_MEMORY_MIB:
        found.append(f"memory grew by {grown:,.0f} MiB (allowed: {ALLOWED_MEMORY_MIB:,.0f})")
    for role, count in phase.descriptors_after.items():
        more = count - quiet.descriptors_after.get(role, count)
        if more > ALLOWED_DESCRIPTORS:
            found.append(f"{role}: {more} descriptors more than before (allowed: {ALLOWED_DESCRIPTORS})")
    if phase.recovery_s is None:
        found.append("the stack did not recover by itself")
    elif phase.recovery_s > ALLOWED_RECOVERY_S:
        found.append(f"recovered {phase.recovery_s:.0f} s after the end (allowed: {ALLOWED_RECOVERY_S:.0f})")
    return found


def _slow(phase: PhaseResult, quiet: PhaseResult) -> list[str]:
    found = []
    for name, delay in phase.delays.items():
        usual = quiet.delays[name]
        if delay is None:
            found.append(f"{name}: the probe got no token")
        elif usual is not None and delay.p99_ms > usual.p99_ms + ALLOWED_DELAY_MS:
            allowed = usual.p99_ms + ALLOWED_DELAY_MS
            found.append(f"{name}: p99 was {delay.p99_ms:,.0f} ms (allowed: {allowed:,.0f})")
    return found


@dataclass
class Siege:
    """A finished siege. The first phase is the quiet one."""

    when: str
    commit: str | None
    machine: MachineFacts
    settings: dict[str, Any]
    phases: list[PhaseResult] = field(default_factory=list)

    @property
    def quiet(self) -> PhaseResult:
        """The phase without a hostile client."""
        return self.phases[0]

    def findings(self) -> dict[str, list[str]]:
        """Returns the findings by phase, of those phases that did not pass."""
        by_phase = {phase.name: findings(phase, self.quiet) for phase in self.phases}
        return {name: found for name, found in by_phase.items() if found}
