"""The process of the hostile clients: `python -m benchmarks.siege.load`, with a LoadJob on its standard input.

Its clients run at the lowest priority, so that they take no time of the processes that are measured, and end with the
phase: one that leaks or hangs is gone then. The standard output is STARTED, and a LoadReport at the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import sys
from dataclasses import dataclass, field
from random import Random
from typing import Any

import orjson

from benchmarks.siege.attacks.attack import Attack, Load, Tally
from benchmarks.siege.attacks.random_guides import RandomGuides
from benchmarks.siege.attacks.registry import ATTACKS
from benchmarks.siege.target import Target

STARTED = b"started\n"
_LOWEST_PRIORITY = 19


@dataclass(frozen=True)
class LoadJob:
    """Attacks that run together. `random_guides` is a sort of random guides, with the number to send."""

    target: Target
    attacks: list[str]
    seconds: float
    seed: int
    random_guides: tuple[str, int] | None = None

    def to_json(self) -> bytes:
        """Returns the job as the process reads it."""
        return orjson.dumps(self)

    @classmethod
    def from_json(cls, data: bytes) -> LoadJob:
        """Reads a job. Raises ValueError or TypeError if the data is invalid."""
        fields: dict[str, Any] = orjson.loads(data)
        return cls(**{**fields, "target": Target(**fields["target"])})

    def clients(self) -> list[Attack]:
        """Returns the attacks."""
        attacks = [ATTACKS[name] for name in self.attacks]
        if self.random_guides is not None:
            sort, count = self.random_guides
            attacks.append(RandomGuides(sort, count, self.seed))
        return attacks

    @property
    def longest_s(self) -> float:
        """Time after which the process should have ended by itself."""
        return self.seconds + max((attack.grace_s for attack in self.clients()), default=0.0)


@dataclass
class LoadReport:
    """Outcomes by attack; those that are not allowed; and an example of each that is an error."""

    outcomes: dict[str, dict[str, int]] = field(default_factory=dict)
    unexpected: dict[str, dict[str, int]] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, attack: Attack, tally: Tally) -> None:
        """Adds what the requests of one attack got."""
        self.outcomes[attack.name] = {name: count for name, count in tally.outcomes.most_common() if count}
        if unexpected := attack.unexpected(tally):
            self.unexpected[attack.name] = unexpected
        for name, examples in tally.examples.items():
            self.examples.setdefault(name, examples)


async def run(job: LoadJob) -> LoadReport:
    """Runs the attacks of a job for its time, then waits for requests under way, and hangs up on the rest."""
    report = LoadReport()

    async def attack_until_stopped(attack: Attack, tally: Tally) -> None:
        random = Random(f"{job.seed} {attack.name}")
        load = Load(job.target, tally, random, job.seconds, asyncio.Event())
        task = asyncio.create_task(attack.run(load))
        await asyncio.wait({task}, timeout=job.seconds)
        load.stopping.set()
        await asyncio.wait({task}, timeout=max(attack.grace_s, 0.5))
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    attacks = job.clients()
    tallies = [Tally() for _ in attacks]
    await asyncio.gather(*map(attack_until_stopped, attacks, tallies))
    for attack, tally in zip(attacks, tallies, strict=True):
        report.add(attack, tally)
    return report


def main() -> int:
    """Reads a job, runs it and writes its report."""
    job = LoadJob.from_json(sys.stdin.buffer.read())
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    os.nice(_LOWEST_PRIORITY)  # after all imports: at this priority, they would take longer than a short phase
    sys.stdout.buffer.write(STARTED)
    sys.stdout.buffer.flush()
    report = asyncio.run(run(job))
    sys.stdout.buffer.write(orjson.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
