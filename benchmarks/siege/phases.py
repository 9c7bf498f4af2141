"""The plan of a siege: quiet first, then each kind of hostile client alone, all of them together, random guides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.siege.attacks.attack import Attack
from benchmarks.siege.guides.random_guides import SORTS
from benchmarks.siege.results import ALL_TOGETHER, QUIET

SHORTEST_S = 1.0  # fewer samples say nothing
_QUIET_UNITS, _ALL_UNITS = 3, 3  # in units of one kind's time
_SECONDS_FOR_A_GUIDE = 1.0  # at most, on a busy machine


@dataclass(frozen=True)
class Phase:
    """One phase: the attacks that run together, and for how long. `random_guides` is a sort, and their number."""

    name: str
    line: str
    seconds: float
    attacks: tuple[str, ...] = ()
    random_guides: tuple[str, int] | None = None


def plan(attacks: Sequence[Attack], minutes: float, guides: int = 0) -> list[Phase]:
    """Returns the phases; `minutes` is the time of all of them but the random guides, which end when all are sent."""
    is_several = len(attacks) > 1
    units = _QUIET_UNITS + len(attacks) + (_ALL_UNITS if is_several else 0)
    unit_s = max(minutes * 60 / units, SHORTEST_S)
    phases = [Phase(QUIET, "no hostile client", _QUIET_UNITS * unit_s)]
    phases += [Phase(attack.name, attack.line, unit_s, (attack.name,)) for attack in attacks]
    if is_several:
        names = tuple(attack.name for attack in attacks)
        phases.append(Phase(ALL_TOGETHER, "all of the above at once", _ALL_UNITS * unit_s, names))
    if guides:
        phases += [
            Phase(
                f"random guides: {sort}",
                f"{guides:,} random {sort}",
                guides * _SECONDS_FOR_A_GUIDE + 60,
                random_guides=(sort, guides),
            )
            for sort in SORTS
        ]
    return phases
