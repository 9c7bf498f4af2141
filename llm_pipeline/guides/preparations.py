"""Which guides are being prepared, are in use or are kept: the state of the service, without threads and sockets.

A guide is one *preparation* for each tenant that uses it, and has a process of its own while masks are made: tenants
share no process, so none can slow or end another's. Requests with the same guide of one tenant share it.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from llm_pipeline.guides import errors
from llm_pipeline.guides.guide_process import cpu_s_of
from llm_pipeline.guides.limits import MIB, GuideLimits
from llm_pipeline.guides.orders import (
    CompileOrder,
    DemoteOrder,
    KillOrder,
    Order,
    ProcessEnded,
    ProcessStarted,
    Verdict,
)
from llm_pipeline.guides.schedule import Action, CompileSchedule, Demote, Lane, Start
from llm_pipeline.guides.verdict_cache import VerdictCache, digest_of
from llm_pipeline.protocol.errors import PipelineError
from llm_pipeline.protocol.messages import Guide, GuideType

OnPrepared: TypeAlias = Callable[[str | None, PipelineError | None], None]
"""Receives the address of the guide's process, or None if no masks are made; and the error, if there is one."""
_Key: TypeAlias = tuple[str, bytes]  # tenant, digest of the guide


@dataclass(frozen=True)
class _Waiter:
    on_prepared: OnPrepared
    deadline: float


@dataclass(eq=False)
class _Preparation:
    """One guide of one tenant, from its first request until its process has ended."""

    number: int
    key: _Key
    guide: Guide
    waiters: dict[int, _Waiter] = field(default_factory=dict)  # by ticket, in order of their deadlines
    users: set[int] = field(default_factory=set)  # tickets, once it is ready
    attempt: int | None = None  # names its process, if it has one
    pid: int | None = None
    address: str | None = None
    memory_bytes: int = 0

    @property
    def tenant(self) -> str:
        return self.key[0]

    @property
    def is_ready(self) -> bool:
        return self.address is not None


class Preparations:
    """Guides from `prepare` until `release`. Not thread-safe: it belongs to the service's thread.

    `send` sends an order to the fork server. `directory` is where the sockets of guides' processes are; None if no
    masks are made. `compiles_tags`: whether structural tags are compiled too; else they pass, as llguidance follows
    only a part of what the engine's own compiler, xgrammar, does.
    """

    def __init__(
        self,
        limits: GuideLimits,
        send: Callable[[Order], None],
        directory: Path | None,
        *,
        compiles_tags: bool = False,
        cpu_s_of: Callable[[int], float] = cpu_s_of,
    ) -> None:
        self._limits = limits
        self._cpu_s_of = cpu_s_of
        self._send = send
        self._directory = directory
        self._compiles_tags = compiles_tags
        self._schedule = CompileSchedule(limits)
        self._verdicts = VerdictCache(limits.verdicts)
        self._numbers = itertools.count(1)
        self._by_key: dict[_Key, _Preparation] = {}
        self._by_number: dict[int, _Preparation] = {}
        self._by_attempt: dict[int, _Preparation] = {}  # of running processes, unless they have been given up
        self._by_ticket: dict[int, _Preparation] = {}
        self._idle: dict[int, _Preparation] = {}  # by number, the one used last at the end
        self._waiting_of_tenant: Counter[str] = Counter()  # requests
        self._processes_of_tenant: Counter[str] = Counter()

    def prepare(self, ticket: int, guide: Guide, tenant: str, on_prepared: OnPrepared, now: float) -> None:
        """Calls `on_prepared` once the guide can be used or can't be, now or later, unless it is released before."""
        if guide.type is GuideType.STRUCTURAL_TAG and not self._compiles_tags:
            on_prepared(None, None)
            return
        digest = digest_of(guide)
        verdict = self._verdicts.find(digest, tenant, now)
        if verdict is not None:
            on_prepared(None, *verdict)
            return
        preparation = self._by_key.get((tenant, digest))
        if preparation is not None and preparation.is_ready:
            self._idle.pop(preparation.number, None)
            preparation.users.add(ticket)
            self._by_ticket[ticket] = preparation
            on_prepared(preparation.address, None)
            return
        if (refusal := self._refusal(tenant)) is not None:
            on_prepared(None, refusal)
            return
        if preparation is None:
            preparation = _Preparation(next(self._numbers), (tenant, digest), guide)
            self._by_key[preparation.key] = self._by_number[preparation.number] = preparation
            self._schedule.add(preparation.number, tenant)
        preparation.waiters[ticket] = _Waiter(on_prepared, now + self._limits.wait_s)
        self._by_ticket[ticket] = preparation
        self._waiting_of_tenant[tenant] += 1

    def release(self, ticket: int) -> None:
        """Ends a request's use of its guide, or its wait. A guide that no request waits for is not compiled further."""
        preparation = self._by_ticket.pop(ticket, None)
        if preparation is None:
            return
        if preparation.waiters.pop(ticket, None) is not None:
            self._forget_waiters(preparation.tenant, 1)
            if not preparation.waiters:
                self._act(self._schedule.remove(preparation.number, preparation.tenant))
                self._drop(preparation)
            return
        preparation.users.discard(ticket)
        if preparation.is_ready and not preparation.users and preparation.number in self._by_number:
            self._idle[preparation.number] = preparation
            self._evict()

    def on_process_started(self, started: ProcessStarted) -> None:
        """Notes the process of a guide."""
        preparation = self._by_attempt.get(started.attempt)
        if preparation is not None:
            preparation.pid = started.pid

    def on_verdict(self, verdict: Verdict, now: float) -> None:
        """Ends the wait for a guide."""
        self._schedule.charge(verdict.attempt, verdict.cpu_s, now)
        self._schedule.finish(verdict.attempt)
        preparation = self._by_attempt.get(verdict.attempt)
        if preparation is None:  # given up
            return
        if verdict.error is not None:
            error = errors.invalid_guide(preparation.guide, verdict.error)
            self._verdicts.add(preparation.key[1], error)
            self._end(preparation, error)
        elif self._directory is None:
            self._verdicts.add(preparation.key[1], None)
            self._end(preparation, None)
        else:
            preparation.address = self._address(verdict.attempt)
            preparation.memory_bytes = verdict.memory_bytes
            waiters, preparation.waiters = preparation.waiters, {}
            preparation.users |= waiters.keys()
            self._forget_waiters(preparation.tenant, len(waiters))
            for waiter in waiters.values():
                waiter.on_prepared(preparation.address, None)

    def on_process_ended(self, ended: ProcessEnded, now: float) -> None:
        """Gives up a guide whose process has ended by itself: it exceeded a limit, or was ended from outside.

        Its requests in the engine end when they miss their masks; those that wait for it end here.
        """
        self._schedule.charge(ended.attempt, ended.cpu_s, now)
        self._schedule.finish(ended.attempt)
        preparation = self._by_attempt.get(ended.attempt)
        if preparation is None:
            return
        error = errors.error_of_status(preparation.guide, ended.status, self._limits, was_ready=preparation.is_ready)
        if error is not None:
            tenant, digest = preparation.key
            self._verdicts.add(digest, error, tenant=tenant, until=now + self._limits.error_s)
        self._end(preparation, error or errors.guides_unavailable())

    def on_server_lost(self) -> None:
        """Gives up everything that is being compiled or in use: the processes have ended with the fork server."""
        self._schedule.clear()
        for preparation in list(self._by_attempt.values()):
            self._end(preparation, errors.guides_unavailable())

    def refuse_all(self, error: PipelineError | None) -> None:
        """Ends all waits with an error, or without if the executor checks guides itself."""
        for preparation in list(self._by_number.values()):
            if not preparation.is_ready:
                self._act(self._schedule.remove(preparation.number, preparation.tenant))
                self._end(preparation, error)

    def advance(self, now: float, *, can_compile: bool) -> None:
        """Ends waits that are too long, and starts compiles."""
        error = errors.waited_too_long(self._limits)
        for preparation in [entry for entry in self._by_number.values() if entry.waiters]:
            for ticket, waiter in list(preparation.waiters.items()):
                if now < waiter.deadline:
                    break
                self.release(ticket)
                waiter.on_prepared(None, error)
        if can_compile:
            self._act(self._schedule.advance(now, self._may_start, self._used_cpu_s))

    def next_deadline(self) -> float | None:
        """Returns the time at which `advance` has to be called although nothing happens; None if never."""
        times = [next(iter(entry.waiters.values())).deadline for entry in self._by_number.values() if entry.waiters]
        place = self._schedule.next_deadline()
        return min(times if place is None else [*times, place], default=None)

    def _refusal(self, tenant: str) -> PipelineError | None:
        limits = self._limits
        if self._waiting_of_tenant.total() >= limits.waiting:
            return errors.queue_is_full(limits.waiting, "of all clients")
        if self._waiting_of_tenant[tenant] >= limits.waiting_of_tenant:
            return errors.queue_is_full(limits.waiting_of_tenant, "of yours")
        return None

    def _may_start(self, tenant: str) -> bool:
        """Whether a tenant may have another process. An idle one makes room for it."""
        while self._processes_of_tenant.total() >= self._limits.processes and self._idle:
            self._end_idle()
        has_room = self._processes_of_tenant.total() < self._limits.processes
        of_tenant = self._processes_of_tenant[tenant] - sum(entry.tenant == tenant for entry in self._idle.values())
        return has_room and of_tenant < self._limits.processes_of_tenant

    def _used_cpu_s(self, attempt: int) -> float:
        pid = self._by_attempt[attempt].pid
        return 0.0 if pid is None else self._cpu_s_of(pid)

    def _act(self, actions: Iterable[Action]) -> None:
        for action in actions:
            if isinstance(action, Start):
                self._start(self._by_number[action.job], action.attempt, action.lane)
            elif isinstance(action, Demote):
                self._send(DemoteOrder(action.attempt, action.to_idle_class))
            else:
                self._give_up_process(self._by_attempt[action.attempt])

    def _start(self, preparation: _Preparation, attempt: int, lane: Lane) -> None:
        preparation.attempt = attempt
        self._by_attempt[attempt] = preparation
        self._processes_of_tenant[preparation.tenant] += 1
        address = None if self._directory is None else self._address(attempt)
        self._send(CompileOrder(attempt, preparation.guide, address))
        if lane is Lane.SLOW:
            self._send(DemoteOrder(attempt))

    def _end(self, preparation: _Preparation, error: PipelineError | None) -> None:
        """Ends the waits for a guide, and forgets it."""
        self._drop(preparation)
        waiters, preparation.waiters = preparation.waiters, {}
        self._forget_waiters(preparation.tenant, len(waiters))
        for ticket, waiter in waiters.items():
            self._by_ticket.pop(ticket, None)
            waiter.on_prepared(None, error)

    def _drop(self, preparation: _Preparation) -> None:
        """Forgets a guide. Requests in the engine that use it may still release it."""
        self._by_number.pop(preparation.number, None)
        self._idle.pop(preparation.number, None)
        if self._by_key.get(preparation.key) is preparation:
            del self._by_key[preparation.key]
        self._give_up_process(preparation)

    def _give_up_process(self, preparation: _Preparation) -> None:
        """Kills a guide's process, if it still runs, and ignores what it reports from now on."""
        if preparation.attempt is None:
            return
        attempt, preparation.attempt, preparation.pid = preparation.attempt, None, None
        del self._by_attempt[attempt]
        self._processes_of_tenant[preparation.tenant] -= 1
        if not self._processes_of_tenant[preparation.tenant]:
            del self._processes_of_tenant[preparation.tenant]
        self._send(KillOrder(attempt))
        if self._directory is not None:
            Path(self._address(attempt)).unlink(missing_ok=True)

    def _evict(self) -> None:
        limits = self._limits
        while len(self._idle) > limits.idle_processes or (
            sum(entry.memory_bytes for entry in self._idle.values()) > limits.idle_memory_mib * MIB
        ):
            self._end_idle()

    def _end_idle(self) -> None:
        """Ends the process that has been idle longest of the tenant that has the most idle ones."""
        counts = Counter(entry.tenant for entry in self._idle.values())
        most = max(counts.values())
        self._drop(next(entry for entry in self._idle.values() if counts[entry.tenant] == most))

    def _forget_waiters(self, tenant: str, count: int) -> None:
        self._waiting_of_tenant[tenant] -= count
        if not self._waiting_of_tenant[tenant]:
            del self._waiting_of_tenant[tenant]

    def _address(self, attempt: int) -> str:
        assert self._directory is not None
        return str(self._directory / str(attempt))
