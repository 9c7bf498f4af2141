"""Which guides are prepared, kept and given up: bounds for each tenant and in all, without any process."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from llm_pipeline.guides.limits import MIB, GuideLimits
from llm_pipeline.guides.orders import CompileOrder, KillOrder, Order, ProcessEnded, Verdict
from llm_pipeline.guides.preparations import Preparations
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.protocol.messages import Guide
from tests.support.hostile_guides import regex

PLENTY = GuideLimits(fast_places=100, fast_budget_s=1e9)


class FakeProcesses:
    """Preparations, the orders that they have sent, and the outcomes of requests."""

    def __init__(self, directory: Path | None, limits: GuideLimits = PLENTY) -> None:
        self.preparations = Preparations(limits, self._obey, directory)
        self.now = 0.0
        self.running: dict[int, CompileOrder] = {}  # by attempt
        self.unfinished: list[int] = []  # attempts without a verdict
        self.compiled: Counter[Guide] = Counter()
        self.outcomes: dict[int, tuple[str | None, PipelineError | None]] = {}  # by ticket
        self._ticket = 0

    def prepare(self, guide: Guide, tenant: str = "a") -> int:
        self._ticket += 1
        ticket = self._ticket

        def on_prepared(address: str | None, error: PipelineError | None) -> None:
            assert ticket not in self.outcomes, "a second outcome"
            self.outcomes[ticket] = (address, error)

        self.preparations.prepare(ticket, guide, tenant, on_prepared, self.now)
        self.advance()
        return ticket

    def release(self, ticket: int) -> None:
        self.preparations.release(ticket)
        self.advance()

    def advance(self, seconds: float = 0.0) -> None:
        self.now += seconds
        self.preparations.advance(self.now, can_compile=True)

    def finish(self, error: str | None = None, *, memory_bytes: int = 0) -> None:
        """Gives the verdict on every guide that is being compiled."""
        while self.unfinished:
            verdict = Verdict(self.unfinished.pop(0), 0.001, error, memory_bytes)
            self.preparations.on_verdict(verdict, self.now)
            self.advance()

    def die(self, status: int) -> None:
        """Ends the process that was started last."""
        attempt = max(self.running)
        del self.running[attempt]
        self.unfinished = [other for other in self.unfinished if other != attempt]
        self.preparations.on_process_ended(ProcessEnded(attempt, status, 0.001), self.now)
        self.advance()

    def prepared(self, guide: Guide, tenant: str = "a") -> int:
        """Prepares a guide with success, and returns the ticket."""
        ticket = self.prepare(guide, tenant)
        self.finish()
        return ticket

    def error_code(self, ticket: int) -> ErrorCode | None:
        error = self.outcomes[ticket][1]
        return None if error is None else error.code

    def _obey(self, order: Order) -> None:
        if isinstance(order, CompileOrder):
            self.running[order.attempt] = order
            self.unfinished.append(order.attempt)
            self.compiled[order.guide] += 1
        elif isinstance(order, KillOrder):
            self.running.pop(order.attempt, None)
            self.unfinished = [attempt for attempt in self.unfinished if attempt != order.attempt]


@pytest.fixture
def fake(tmp_path: Path) -> FakeProcesses:
    return FakeProcesses(tmp_path)


def test_the_idle_process_of_the_tenant_with_the_most_ends_first(tmp_path: Path) -> None:
    fake = FakeProcesses(tmp_path, GuideLimits(idle_processes=4, fast_places=100))
    modest = fake.prepared(regex("modest"), "modest")
    fake.release(modest)
    for number in range(20):
        fake.release(fake.prepared(regex(f"greedy{number}"), "greedy"))
    assert len(fake.running) == 4
    fake.prepare(regex("modest"), "modest")
    assert fake.compiled[regex("modest")] == 1


def test_idle_processes_are_bounded_by_their_memory(tmp_path: Path) -> None:
    fake = FakeProcesses(tmp_path, GuideLimits(idle_memory_mib=100, fast_places=100))
    for number in range(5):
        ticket = fake.prepare(regex(f"large{number}"))
        fake.finish(memory_bytes=40 * MIB)
        fake.release(ticket)
    assert len(fake.running) == 2


def test_a_tenant_has_a_bounded_number_of_processes_and_others_go_on(tmp_path: Path) -> None:
    fake = FakeProcesses(tmp_path, GuideLimits(processes_of_tenant=3, fast_places=100, wait_s=5.0))
    tickets = [fake.prepared(regex(f"guide{number}"), "greedy") for number in range(4)]
    assert len(fake.running) == 3
    assert tickets[3] not in fake.outcomes
    assert fake.error_code(fake.prepared(regex("other"), "other")) is None
    fake.release(tickets[0])
    fake.finish()
    assert fake.error_code(tickets[3]) is None


def test_idle_processes_make_room_for_new_ones(tmp_path: Path) -> None:
    fake = FakeProcesses(tmp_path, GuideLimits(processes=3, fast_places=100))
    for number in range(3):
        fake.release(fake.prepared(regex(f"guide{number}")))
    assert fake.error_code(fake.prepared(regex("new"))) is None
    assert len(fake.running) == 3


def test_an_invalid_guide_is_refused_to_all_tenants_after_one_try(fake: FakeProcesses) -> None:
    fake.prepare(regex("bad"), "a")
    fake.finish("invalid.")
    ticket = fake.prepare(regex("bad"), "b")
    assert fake.error_code(ticket) is ErrorCode.VALUE_OUT_OF_RANGE
    assert fake.compiled[regex("bad")] == 1


def test_a_guide_beyond_a_limit_is_refused_to_its_tenant_alone_and_for_a_while(fake: FakeProcesses) -> None:
    fake.prepare(regex("slow"), "a")
    fake.die(-27)  # SIGPROF
    assert fake.error_code(fake.prepare(regex("slow"), "a")) is ErrorCode.VALUE_OUT_OF_RANGE
    assert fake.compiled[regex("slow")] == 1
    assert fake.error_code(fake.prepared(regex("slow"), "b")) is None
    fake.advance(PLENTY.error_s + 1)
    assert fake.error_code(fake.prepared(regex("slow"), "a")) is None


@pytest.mark.parametrize("status", [1, -15, -2])
def test_a_process_that_is_ended_from_outside_is_not_the_guides_fault(fake: FakeProcesses, status: int) -> None:
    ticket = fake.prepare(regex("fine"))
    fake.die(status)
    assert fake.error_code(ticket) is ErrorCode.SERVICE_UNAVAILABLE
    assert fake.error_code(fake.prepared(regex("fine"))) is None


def test_a_wait_ends_at_its_own_time(fake: FakeProcesses) -> None:
    first = fake.prepare(regex("slow"))
    fake.advance(20.0)
    second = fake.prepare(regex("slow"))
    fake.advance(10.0)
    assert fake.error_code(first) is ErrorCode.SERVICE_UNAVAILABLE
    assert second not in fake.outcomes
    fake.finish()
    assert fake.error_code(second) is None


def test_without_masks_a_guide_that_was_valid_once_is_accepted_at_once() -> None:
    fake = FakeProcesses(None)
    fake.prepared(regex("valid"), "a")
    ticket = fake.prepare(regex("valid"), "b")
    assert fake.outcomes[ticket] == (None, None)
    assert fake.compiled[regex("valid")] == 1


@pytest.mark.parametrize("seed", range(10))
def test_nothing_is_left_after_random_use(seed: int, tmp_path: Path) -> None:
    dice = random.Random(seed)
    limits = GuideLimits(processes=6, processes_of_tenant=3, idle_processes=2, waiting=20, waiting_of_tenant=8)
    fake = FakeProcesses(tmp_path, limits)
    tickets: list[int] = []
    for _ in range(400):
        chance = dice.random()
        if chance < 0.45:
            tickets.append(fake.prepare(regex(f"g{dice.randrange(12)}"), f"t{dice.randrange(4)}"))
        elif chance < 0.7 and tickets:
            fake.release(tickets.pop(dice.randrange(len(tickets))))
        elif chance < 0.85:
            fake.finish("invalid." if dice.random() < 0.1 else None)
        elif chance < 0.9 and fake.running:
            fake.die(dice.choice([-27, -9, -15]))
        elif chance < 0.92:
            fake.preparations.on_server_lost()
            fake.running.clear()
            fake.unfinished.clear()
        else:
            fake.advance(dice.choice([0.01, 0.06, 1.0, 31.0]))
        assert len(fake.running) <= limits.processes
    for ticket in tickets:
        fake.release(ticket)
    fake.finish()
    fake.advance(31.0)
    assert len(fake.running) <= limits.idle_processes
    assert fake.preparations.next_deadline() is None
