"""The schedule of compiles: few places, none held for long, and no tenant waits for another's work."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Iterable

import pytest

from llm_pipeline.guides.limits import GuideLimits
from llm_pipeline.guides.schedule import Action, CompileSchedule, Demote, Lane, Start, Stop

LIMITS = GuideLimits()
FAST_S = LIMITS.fast_s
TICK_S = 0.001


class SimulatedCompiles:
    """Runs the schedule's actions against compiles of a given length, in steps of a millisecond."""

    def __init__(self, limits: GuideLimits = LIMITS) -> None:
        self.limits = limits
        self.schedule = CompileSchedule(limits)
        self.now = 0.0
        self._numbers = itertools.count(1)
        self._tenants: dict[int, str] = {}
        self._cpu_s: dict[int, float] = {}
        self.running: dict[int, tuple[int, Lane, float]] = {}  # by attempt: job, lane, start
        self.started: dict[int, float] = {}  # first start of each job
        self.done: dict[int, float] = {}

    def add(self, tenant: str, cpu_s: float) -> int:
        job = next(self._numbers)
        self._tenants[job], self._cpu_s[job] = tenant, cpu_s
        self.schedule.add(job, tenant)
        return job

    def remove(self, job: int) -> None:
        self.apply(self.schedule.remove(job, self._tenants[job]))

    def advance(self, seconds: float = TICK_S) -> None:
        end = self.now + seconds
        while self.now < end:
            self.now += TICK_S
            for attempt, (job, _, start) in list(self.running.items()):
                cpu_s = min(self._cpu_s[job], self.limits.compile_cpu_s)
                if self.now - start >= cpu_s:
                    del self.running[attempt]
                    self.done[job] = self.now
                    self.schedule.charge(attempt, cpu_s, self.now)
                    assert self.schedule.finish(attempt) == job
            self.apply(self.schedule.advance(self.now))
            self.check()

    def apply(self, actions: Iterable[Action]) -> None:
        for action in actions:
            if isinstance(action, Start):
                assert action.attempt not in self.running
                self.running[action.attempt] = (action.job, action.lane, self.now)
                self.started.setdefault(action.job, self.now)
            elif isinstance(action, Demote):
                job, _, start = self.running[action.attempt]
                self.running[action.attempt] = (job, Lane.SLOW, start)
            elif isinstance(action, Stop):
                _, _, start = self.running.pop(action.attempt)
                self.schedule.charge(action.attempt, self.now - start, self.now)

    def check(self) -> None:
        lanes = Counter(lane for _, lane, _ in self.running.values())
        assert lanes[Lane.FAST] <= self.limits.fast_places
        assert lanes[Lane.SLOW] <= self.limits.slow_places
        slow_tenants = [self._tenants[job] for job, lane, _ in self.running.values() if lane is Lane.SLOW]
        assert len(slow_tenants) == len(set(slow_tenants))
        for _, lane, start in self.running.values():
            assert lane is Lane.SLOW or self.now - start <= FAST_S + 2 * TICK_S
        jobs = [job for job, _, _ in self.running.values()]
        assert len(jobs) == len(set(jobs))


@pytest.mark.parametrize("cpu_s", [0.001, 0.04, 0.049, 0.06, 1.9, 1e9])
@pytest.mark.parametrize("tenants", [1, 50])
def test_a_tenants_first_guide_starts_within_a_fast_place_time_whatever_others_send(tenants: int, cpu_s: float) -> None:
    compiles = SimulatedCompiles()
    for _ in range(10):
        for number in range(tenants):
            compiles.add(f"t{number}", cpu_s)
    compiles.advance(1.5)  # the first guide of each, which takes the fast places one after the other
    for number in range(20):
        compiles.advance(0.05)
        added_at = compiles.now
        job = compiles.add(f"new{number}", 0.005)
        compiles.advance(2 * FAST_S)
        assert compiles.started[job] - added_at <= FAST_S + 3 * TICK_S


@pytest.mark.parametrize("cpu_s", [0.04, 0.06, 1e9])
def test_a_tenant_with_a_new_guide_each_second_is_served_beside_fifty_hostile_ones(cpu_s: float) -> None:
    compiles = SimulatedCompiles()
    waits = []
    for second in range(20):
        for number in range(50):
            compiles.add(f"t{number}", cpu_s)
        if second == 0:
            compiles.advance(1.5)
        added_at = compiles.now
        job = compiles.add("honest", 0.008)
        compiles.advance(1.0)
        waits.append(compiles.started[job] - added_at)
        assert job in compiles.done, f"in second {second}"
    assert max(waits) <= FAST_S + 3 * TICK_S


def test_hostile_tenants_use_little_of_the_fast_places() -> None:
    compiles = SimulatedCompiles()
    for number in range(50):
        for _ in range(50):
            compiles.add(f"t{number}", 1e9)
    compiles.advance(5.0)  # the first guide of each
    busy = 0
    for _ in range(20_000):
        compiles.advance(TICK_S)
        busy += sum(lane is Lane.FAST for _, lane, _ in compiles.running.values())
    assert busy / 20_000 < 0.3  # cores


def test_a_long_compile_moves_to_a_slow_place_and_goes_on() -> None:
    compiles = SimulatedCompiles()
    job = compiles.add("a", 1.5)
    compiles.advance(1.6)
    assert compiles.done[job] == pytest.approx(1.5, abs=0.01)


def test_a_compile_without_a_slow_place_starts_again_later() -> None:
    compiles = SimulatedCompiles(GuideLimits(slow_places=1))
    first, second = compiles.add("a", 0.5), compiles.add("b", 0.5)
    compiles.advance(0.2)
    assert [job for job, _, _ in compiles.running.values()] == [first]
    compiles.advance(1.0)
    assert compiles.done.keys() == {first, second}
    assert compiles.done[second] - compiles.done[first] == pytest.approx(0.5, abs=0.02)


def test_a_slow_compile_is_given_only_free_cores_after_a_while() -> None:
    schedule = CompileSchedule(LIMITS)
    schedule.add(1, "a")
    assert list(schedule.advance(0.0)) == [Start(1, 1, Lane.FAST)]
    assert schedule.next_deadline() == FAST_S
    assert list(schedule.advance(FAST_S)) == [Demote(1, to_idle_class=False)]
    assert schedule.next_deadline() == FAST_S + LIMITS.idle_class_after_s
    assert list(schedule.advance(FAST_S + LIMITS.idle_class_after_s)) == [Demote(1, to_idle_class=True)]
    assert schedule.next_deadline() is None


def test_a_tenant_without_room_for_a_process_is_passed_over() -> None:
    schedule = CompileSchedule(LIMITS)
    schedule.add(1, "full")
    schedule.add(2, "other")
    assert list(schedule.advance(0.0, lambda tenant: tenant != "full")) == [Start(2, 1, Lane.FAST)]
    assert list(schedule.advance(0.0)) == [Start(1, 2, Lane.FAST)]


@pytest.mark.parametrize("seed", range(10))
def test_every_job_is_done_or_removed_under_random_load(seed: int) -> None:
    dice = random.Random(seed)
    compiles = SimulatedCompiles(GuideLimits(fast_pause_s=1.0))
    jobs, removed = [], set()
    for _ in range(200):
        jobs.append(compiles.add(f"t{dice.randrange(8)}", dice.choice([0.001, 0.01, 0.05, 0.3, 5.0])))
        if dice.random() < 0.3:
            job = dice.choice(jobs)
            compiles.remove(job)
            removed.add(job)
        compiles.advance(dice.choice([TICK_S, 0.01, 0.05]))
    compiles.advance(90.0)
    assert compiles.done.keys() >= set(jobs) - removed
    assert not compiles.running


def test_a_compile_keeps_its_fast_place_while_the_machine_gives_it_no_cpu_time() -> None:
    schedule = CompileSchedule(LIMITS)
    schedule.add(1, "a")
    list(schedule.advance(0.0))
    now = FAST_S
    while now < LIMITS.fast_wall_s:
        assert list(schedule.advance(now, used_cpu_s=lambda attempt: 0.01)) == []
        deadline = schedule.next_deadline()
        assert deadline is not None
        assert now < deadline <= now + FAST_S
        now = deadline
    assert list(schedule.advance(now, used_cpu_s=lambda attempt: 0.01)) == [Demote(1, to_idle_class=False)]
    schedule.finish(1)
    schedule.add(2, "a")
    assert list(schedule.advance(now)) == [Start(2, 2, Lane.FAST)], "it is not the tenant's fault"
