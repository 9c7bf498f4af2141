"""Decides which guide is compiled next, and in which place. Pure: no process, no clock.

Two fast places serve new guides, most of which take a few milliseconds. A compile that is not done after 50 ms leaves
its fast place, for a slow one if there is room, and else it is stopped and starts again later in a slow place. So a
fast place is free within 50 ms, whatever is compiled. A slow place has the lowest priority of the CPU, and a tenant has
at most one. In both queues the tenant goes first that has used the least CPU time lately. A
tenant whose guide had to leave a fast place, or that has used much, is served by the slow places only for a while, so
that a stream of such guides does not fill two cores.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum, auto
from typing import TypeAlias

from llm_pipeline.guides.limits import GuideLimits


class Lane(Enum):
    """The kind of place that a compile has."""

    FAST = auto()
    SLOW = auto()


@dataclass(frozen=True)
class Start:
    """Start a job's compile, as this attempt."""

    job: int
    attempt: int
    lane: Lane


@dataclass(frozen=True)
class Demote:
    """The attempt has moved to a slow place, or has been there for long."""

    attempt: int
    to_idle_class: bool


@dataclass(frozen=True)
class Stop:
    """The attempt has to be killed: its job is stopped or starts again later."""

    attempt: int


HALF_LIFE_S = 10.0
_FORGOTTEN_S = 1e-4
_SHORTEST_CHECK_S = 0.005

Action: TypeAlias = Start | Demote | Stop


class AttainedService:
    """CPU seconds of each tenant, halved every `half_life_s`, so that an old burst is forgotten.

    A queue that prefers the tenant that has used the least is called least attained service, or foreground-background:
    Nuyens and Wierman, "The Foreground-Background queue: a survey", Performance Evaluation 65 (2008). Not thread-safe;
    `now` never goes back.
    """

    def __init__(self, half_life_s: float = HALF_LIFE_S) -> None:
        self._rate = math.log(2) / half_life_s
        self._used: dict[str, float] = {}  # as of the origin: a later use counts more
        self._origin = 0.0

    def add(self, tenant: str, cpu_s: float, now: float) -> None:
        """Counts `cpu_s`, which may be negative to correct an earlier estimate."""
        self._move_origin(now)
        added = cpu_s * math.exp(self._rate * (now - self._origin))
        self._used[tenant] = max(self._used.get(tenant, 0.0) + added, 0.0)

    def of(self, tenant: str, now: float) -> float:
        """Returns what a tenant has used, decayed until now."""
        return self._used.get(tenant, 0.0) * math.exp(-self._rate * (now - self._origin))

    def _move_origin(self, now: float) -> None:
        """Ages all counts to `now`, at most once a second, and forgets the small ones."""
        factor = math.exp(-self._rate * (now - self._origin))
        if now - self._origin >= 1.0:
            aged = ((tenant, used * factor) for tenant, used in self._used.items())
            self._used = {tenant: used for tenant, used in aged if used > _FORGOTTEN_S}
            self._origin = now


@dataclass
class _Job:
    number: int
    tenant: str
    needs_slow_place: bool = False


@dataclass
class _Running:
    job: _Job
    lane: Lane
    since: float
    check_at: float  # when it may have to leave its place
    is_idle_class: bool = False


class CompileSchedule:
    """The queue and the places. Not thread-safe. `now` is any clock in seconds."""

    def __init__(self, limits: GuideLimits) -> None:
        self._limits = limits
        self._attained = AttainedService()
        self._waiting: dict[str, dict[int, _Job]] = {}  # by tenant, in order of arrival
        self._running: dict[int, _Running] = {}  # by attempt
        self._charged: dict[int, str] = {}  # tenants of attempts whose CPU time is an estimate
        self._paused_until: dict[str, float] = {}  # by tenant: until then it has no fast place
        self._next_attempt = 0

    def add(self, job: int, tenant: str) -> None:
        """Queues a job, which must be new."""
        self._waiting.setdefault(tenant, {})[job] = _Job(job, tenant)

    def remove(self, job: int, tenant: str) -> list[Action]:
        """Drops a job that waits or runs. Unknown ones are ignored."""
        self._unqueue(job, tenant)
        for attempt, running in self._running.items():
            if running.job.number == job:
                del self._running[attempt]
                return [Stop(attempt)]
        return []

    def finish(self, attempt: int) -> int | None:
        """Frees the place of an attempt that is done. Returns its job; None if it had lost its place before."""
        running = self._running.pop(attempt, None)
        return None if running is None else running.job.number

    def charge(self, attempt: int, cpu_s: float, now: float) -> None:
        """Counts the CPU time that an attempt has taken, once it is done or its process has ended."""
        tenant = self._charged.pop(attempt, None)
        if tenant is not None:
            self._attained.add(tenant, cpu_s - self._limits.fast_s, now)

    def clear(self) -> list[int]:
        """Forgets all attempts, because their processes are gone. Returns the jobs that were running."""
        jobs = [running.job.number for running in self._running.values()]
        self._running.clear()
        self._charged.clear()
        return jobs

    def advance(
        self,
        now: float,
        may_start: Callable[[str], bool] = lambda tenant: True,
        used_cpu_s: Callable[[int], float] = lambda attempt: math.inf,
    ) -> Iterator[Action]:
        """Yields what has to be done now, each to be done before the next one is asked for.

        `may_start` is False for tenants that may have no further process. `used_cpu_s` returns the CPU time of an
        attempt so far.
        """
        self._paused_until = {tenant: until for tenant, until in self._paused_until.items() if now < until}
        yield from self._expire(now, used_cpu_s)
        yield from self._fill(Lane.FAST, self._limits.fast_places, now, may_start)
        yield from self._fill(Lane.SLOW, self._limits.slow_places, now, may_start)

    def next_deadline(self) -> float | None:
        """Returns the time at which `advance` has something to do although nothing else happens; None if never."""
        times = [running.check_at for running in self._running.values() if not running.is_idle_class]
        return min(times, default=None)

    def _expire(self, now: float, used_cpu_s: Callable[[int], float]) -> Iterator[Action]:
        """Moves compiles that have had their time in their place."""
        for attempt, running in list(self._running.items()):
            if now < running.check_at or running.is_idle_class:
                continue
            if running.lane is Lane.SLOW:
                running.is_idle_class = True
                yield Demote(attempt, to_idle_class=True)
                continue
            left_s = self._limits.fast_s - used_cpu_s(attempt)
            if left_s > 0 and now < running.since + self._limits.fast_wall_s:
                running.check_at = now + max(left_s, _SHORTEST_CHECK_S)
                continue
            job, is_slow = running.job, left_s <= 0  # else, it is the machine that is slow
            if is_slow:
                self._paused_until[job.tenant] = now + self._limits.fast_pause_s
            if self._has_slow_place(job.tenant):
                running.lane = Lane.SLOW
                running.check_at = now + self._limits.idle_class_after_s
                yield Demote(attempt, to_idle_class=False)
            else:
                del self._running[attempt]
                job.needs_slow_place = is_slow
                self._waiting.setdefault(job.tenant, {})[job.number] = job
                yield Stop(attempt)

    def _fill(self, lane: Lane, places: int, now: float, may_start: Callable[[str], bool]) -> Iterator[Action]:
        while self._count(lane) < places:
            candidates = [
                (self._attained.of(tenant, now), job.number, job)
                for tenant in self._waiting
                if (job := self._first(tenant, lane, now)) is not None and may_start(tenant)
            ]
            if not candidates:
                return
            _, _, job = min(candidates, key=lambda candidate: candidate[:2])
            self._unqueue(job.number, job.tenant)
            self._next_attempt += 1
            attempt = self._next_attempt
            stay_s = self._limits.fast_s if lane is Lane.FAST else self._limits.idle_class_after_s
            self._running[attempt] = _Running(job, lane, now, now + stay_s)
            # Charged before it is known, so that a tenant does not take all places in one moment.
            self._attained.add(job.tenant, self._limits.fast_s, now)
            self._charged[attempt] = job.tenant
            yield Start(job.number, attempt, lane)

    def _first(self, tenant: str, lane: Lane, now: float) -> _Job | None:
        """Returns a tenant's next job for a lane."""
        may_be_fast = self._may_be_fast(tenant, now)
        jobs = self._waiting[tenant].values()
        if lane is Lane.SLOW:
            if not self._has_slow_place(tenant):
                return None
            return next((job for job in jobs if job.needs_slow_place or not may_be_fast), None)
        return next((job for job in jobs if may_be_fast and not job.needs_slow_place), None)

    def _may_be_fast(self, tenant: str, now: float) -> bool:
        if now < self._paused_until.get(tenant, now):
            return False
        running = sum(estimated == tenant for estimated in self._charged.values())
        return self._attained.of(tenant, now) - running * self._limits.fast_s <= self._limits.fast_budget_s

    def _has_slow_place(self, tenant: str) -> bool:
        slow = [running for running in self._running.values() if running.lane is Lane.SLOW]
        return len(slow) < self._limits.slow_places and all(running.job.tenant != tenant for running in slow)

    def _count(self, lane: Lane) -> int:
        return sum(running.lane is lane for running in self._running.values())

    def _unqueue(self, job: int, tenant: str) -> None:
        jobs = self._waiting.get(tenant, {})
        jobs.pop(job, None)
        if not jobs:
            self._waiting.pop(tenant, None)
