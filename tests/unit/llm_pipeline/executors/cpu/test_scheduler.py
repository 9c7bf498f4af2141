"""The CPU engine's scheduler: no block leaks or has two owners, no step is empty, and every sequence finishes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_pipeline.executors.cpu.engine.blocks import BlockPool
from llm_pipeline.executors.cpu.engine.scheduler import ScheduledChunk, Scheduler, Sequence
from tests.support.sample_requests import make_request


@dataclass(frozen=True)
class Job:
    """A sequence, the step before which it is added, and the step before which it is removed (None: when done)."""

    prompt: int
    max_tokens: int
    arrives: int = 0
    leaves: int | None = None
    kind: int = 0  # prompts of one kind have equal prefixes
    tenant: str = ""
    stall: int = 0  # steps for which each of its tokens waits for a mask


@dataclass(frozen=True)
class Pool:
    """The resources that sequences share."""

    block_count: int
    block_size: int
    max_batched_tokens: int
    max_active: int
    prefix_cache: bool = False

    @property
    def capacity(self) -> int:
        return self.block_count * self.block_size


@dataclass
class Run:
    """Simulates the engine: adds, schedules, computes, appends tokens, removes; checks the rules in every step."""

    pool: Pool
    jobs: list[Job]
    scheduler: Scheduler = field(init=False)
    live: list[Sequence] = field(default_factory=list)
    finished: list[Sequence] = field(default_factory=list)
    started: list[Sequence] = field(default_factory=list)
    added: list[Sequence] = field(default_factory=list)
    stalled: dict[int, tuple[Sequence, int]] = field(default_factory=dict)  # by id, with the step of its mask
    step_number: int = 0
    preemption_count: int = 0
    stalls: dict[int, int] = field(default_factory=dict)  # by id of a sequence
    on_schedule: Callable[[list[ScheduledChunk]], None] = lambda plan: None

    def __post_init__(self) -> None:
        pool = self.pool
        self.scheduler = Scheduler(
            block_count=pool.block_count,
            block_size=pool.block_size,
            max_batched_tokens=pool.max_batched_tokens,
            max_active=pool.max_active,
            prefix_cache=pool.prefix_cache,
        )

    def go(self) -> Run:
        # The oldest sequence is never preempted and computes a token at least in every step.
        limit = sum(job.prompt + job.max_tokens for job in self.jobs) + max(
            (job.arrives for job in self.jobs), default=0
        )
        # A sequence that stalls may compute all of its tokens again for each new one.
        limit += sum(job.max_tokens * (job.stall + self.pool.capacity) for job in self.jobs if job.stall)
        arrivals = [
            (job, Sequence(make_request(max_tokens=job.max_tokens), [job.kind] * job.prompt)) for job in self.jobs
        ]
        for _, sequence in arrivals:  # the prompt decides what `generated` counts from
            object.__setattr__(sequence.request, "prompt_ids", tuple(sequence.tokens))
        for job, sequence in arrivals:
            object.__setattr__(sequence.request, "tenant", job.tenant)
        self.stalls = {id(sequence): job.stall for job, sequence in arrivals}
        for step in range(limit + 1):
            self.step_number = step
            for sequence, resumes in list(self.stalled.values()):
                if step >= resumes:
                    self._resume(sequence)
                elif self.scheduler.has_waiting and resumes % 2:
                    self.scheduler.park(sequence)
            for job, sequence in arrivals:
                if job.arrives == step:
                    self._add(sequence)
                if job.leaves == step and sequence in self.live:
                    self._remove(sequence)
            if self.scheduler.has_work:
                self._step()
        assert not self.live, "not every sequence finished"
        return self

    def _add(self, sequence: Sequence) -> None:
        self.scheduler.add(sequence)
        self.live.append(sequence)
        self.added.append(sequence)

    def _remove(self, sequence: Sequence) -> None:
        self.scheduler.remove(sequence)
        self.live.remove(sequence)
        self.stalled.pop(id(sequence), None)
        assert sequence.blocks == []
        self._check_blocks()

    def _step(self) -> None:
        computed_before = {id(sequence): sequence.computed for sequence in self.live}
        tokens_before = {id(sequence): list(sequence.tokens) for sequence in self.live}
        plan = self.scheduler.schedule()
        self.on_schedule(plan)
        self._check_plan(plan)
        self._check_blocks()
        for sequence in self.live:
            assert sequence.tokens == tokens_before[id(sequence)], "scheduling must not change generated tokens"
            self.preemption_count += sequence.computed < computed_before[id(sequence)]
        for chunk in plan:
            self._compute(chunk)

    def _check_plan(self, plan: list[ScheduledChunk]) -> None:
        assert plan or self.stalled, "an empty step while there is work"
        assert plan or not self.scheduler.has_work, "the loop would spin"
        assert not any(chunk.sequence.is_stalled for chunk in plan)
        budget = max(self.pool.max_batched_tokens, self.pool.max_active)
        assert sum(chunk.end - chunk.start for chunk in plan) <= budget
        assert len({id(chunk.sequence) for chunk in plan}) == len(plan), "a sequence twice in one step"
        assert self.scheduler.active_count <= self.pool.max_active
        for chunk in plan:
            assert chunk.sequence in self.live
            assert chunk.start == chunk.sequence.computed
            assert chunk.start < chunk.end <= len(chunk.sequence.tokens)
            assert len(chunk.sequence.blocks) * self.pool.block_size >= chunk.end, (
                "too few blocks for the computed tokens"
            )

    def _check_blocks(self) -> None:
        users: dict[int, list[tuple[Sequence, int]]] = {}
        for sequence in self.live:
            assert len(set(sequence.blocks)) == len(sequence.blocks), "a block twice in a sequence"
            for index, block in enumerate(sequence.blocks):
                users.setdefault(block, []).append((sequence, index))
        assert set(users) <= set(range(self.pool.block_count))
        assert len(users) + self.scheduler.free_block_count == self.pool.block_count, "a block leaked"
        for sharers in users.values():
            if len(sharers) > 1:
                self._check_shared(sharers)

    def _check_shared(self, sharers: list[tuple[Sequence, int]]) -> None:
        assert self.pool.prefix_cache, "a block has two owners"
        end = (sharers[0][1] + 1) * self.pool.block_size
        prefixes = {tuple(sequence.tokens[:end]) for sequence, _ in sharers}
        assert len(prefixes) == 1, "a block with the tokens of another sequence"
        assert len({index for _, index in sharers}) == 1
        assert all(sequence.computed >= end for sequence, _ in sharers), "a block is written while it is shared"

    def _compute(self, chunk: ScheduledChunk) -> None:
        sequence = chunk.sequence
        if sequence not in self.started:
            self.started.append(sequence)
        sequence.computed = chunk.end
        if chunk.is_sampled:
            if stall := self.stalls[id(sequence)]:
                sequence.is_stalled = True
                self.stalled[id(sequence)] = (sequence, self.step_number + stall)
            else:
                self._sample(sequence)

    def _resume(self, sequence: Sequence) -> None:
        del self.stalled[id(sequence)]
        self.scheduler.resume(sequence)
        self._sample(sequence)

    def _sample(self, sequence: Sequence) -> None:
        sequence.tokens.append(1)
        if sequence.generated == sequence.request.max_tokens:
            self._remove(sequence)
            self.finished.append(sequence)


@st.composite
def runs(draw: st.DrawFn, *, tenants: str = "abc", max_stall: int = 0) -> Run:
    pool = Pool(
        block_count=draw(st.integers(1, 12)),
        block_size=draw(st.integers(1, 5)),
        max_batched_tokens=draw(st.integers(1, 20)),
        max_active=draw(st.integers(1, 6)),
        prefix_cache=draw(st.booleans()),
    )
    jobs = []
    if pool.capacity >= 2:
        for _ in range(draw(st.integers(1, 10))):
            prompt = draw(st.integers(1, pool.capacity - 1))
            arrives = draw(st.integers(0, 20))
            leaves = draw(st.none() | st.integers(arrives, arrives + 25))
            max_tokens = draw(st.integers(1, pool.capacity - prompt))
            tenant = draw(st.sampled_from(tenants))
            kind, stall = draw(st.integers(0, 2)), draw(st.integers(0, max_stall))
            jobs.append(Job(prompt, max_tokens, arrives, leaves, kind, tenant, stall))
    return Run(pool, jobs)


@given(runs() | runs(max_stall=5))
def test_rules_hold_for_any_arrivals_and_removals(run: Run) -> None:
    """Also if sequences wait for masks, and lose their slots while they wait."""
    run.go()
    assert run.scheduler.free_block_count == run.pool.block_count
    assert not run.scheduler.has_work


@given(runs(tenants="a"))
def test_sequences_of_one_tenant_start_in_order_of_arrival(run: Run) -> None:
    run.go()
    order = [sequence for sequence in run.added if sequence in run.started]
    assert run.started == order


def test_full_pool_preempts_and_all_sequences_finish_with_all_tokens() -> None:
    run = Run(Pool(block_count=4, block_size=2, max_batched_tokens=8, max_active=4), [Job(2, 6), Job(2, 6), Job(2, 6)])
    run.go()
    assert run.preemption_count > 0
    assert [sequence.generated for sequence in run.finished] == [6, 6, 6]
    assert run.finished == run.added  # oldest first: the youngest is preempted


def test_decoding_has_priority_and_prefill_uses_the_rest_of_the_budget() -> None:
    plans: list[list[tuple[int, int]]] = []
    run = Run(Pool(100, 2, max_batched_tokens=8, max_active=4), [Job(2, 4), Job(20, 1, arrives=1)])
    run.on_schedule = lambda plan: plans.append([(chunk.start, chunk.end) for chunk in plan])
    run.go()
    assert plans == [[(0, 2)], [(2, 3), (0, 7)], [(3, 4), (7, 14)], [(4, 5), (14, 20)]]


def test_sequences_beyond_max_active_wait() -> None:
    run = Run(Pool(100, 2, max_batched_tokens=50, max_active=2), [Job(1, 3)] * 5)
    counts: list[tuple[int, int]] = []
    run.on_schedule = lambda plan: counts.append((run.scheduler.active_count, len(run.live)))
    run.go()
    assert counts[0] == (2, 5)


def test_budget_below_max_active_still_serves_every_decoding_sequence() -> None:
    run = Run(Pool(100, 2, max_batched_tokens=1, max_active=3), [Job(1, 5)] * 3)
    sizes: list[int] = []
    run.on_schedule = lambda plan: sizes.append(len(plan))
    run.go()
    assert sizes == [3] * 5


# --- Tenants -----------------------------------------------------------------------------------------------------


def steps_of(run: Run) -> list[dict[str, tuple[int, int]]]:
    """Runs it, and returns the chunk of each tenant in each step."""
    plans: list[dict[str, tuple[int, int]]] = []
    run.on_schedule = lambda plan: plans.append(
        {chunk.sequence.request.tenant: (chunk.start, chunk.end) for chunk in plan}
    )
    run.go()
    return plans


def test_short_prompt_is_computed_beside_the_long_one_of_another_tenant() -> None:
    pool = Pool(1000, 2, max_batched_tokens=10, max_active=4)
    steps = steps_of(Run(pool, [Job(100, 1, tenant="long"), Job(4, 1, arrives=2, tenant="short")]))
    assert steps[:4] == [{"long": (0, 10)}, {"long": (10, 20)}, {"long": (20, 26), "short": (0, 4)}, {"long": (26, 36)}]


def test_short_prompt_is_computed_beside_the_first_of_many_long_ones_whatever_its_tenant_has_taken() -> None:
    pool = Pool(10_000, 2, max_batched_tokens=10, max_active=4)
    shorts = [Job(4, 1, arrives=step, tenant="short") for step in range(1, 60)]
    steps = steps_of(Run(pool, [*[Job(100, 1, tenant="long")] * 4, *shorts]))
    assert all("short" in step for step in steps[1:60])


def test_short_prompt_waits_for_the_long_one_of_its_own_tenant() -> None:
    pool = Pool(1000, 2, max_batched_tokens=10, max_active=4)
    run = Run(pool, [Job(100, 1, tenant="a"), Job(4, 1, arrives=2, tenant="a")])
    run.go()
    assert run.finished == run.added


def test_equal_prompts_of_two_tenants_are_computed_one_after_the_other() -> None:
    """Half of the speed for each of them would be later for one and no earlier for the other."""
    pool = Pool(1000, 2, max_batched_tokens=10, max_active=4)
    steps = steps_of(Run(pool, [Job(30, 1, tenant="a"), Job(30, 1, tenant="b")]))
    assert [list(step) for step in steps] == [["a"]] * 3 + [["b"]] * 3


def test_long_prompt_keeps_half_of_the_steps_beside_many_short_ones() -> None:
    pool = Pool(1000, 2, max_batched_tokens=10, max_active=4)
    shorts = [Job(5, 1, arrives=step, tenant=f"{step % 7}") for step in range(40)]
    steps = steps_of(Run(pool, [Job(100, 1, tenant="long"), *shorts]))
    assert all(step["long"][1] - step["long"][0] >= 5 for step in steps if "long" in step)
    assert max(index for index, step in enumerate(steps) if "long" in step) <= 20


def test_many_waiting_sequences_of_a_tenant_do_not_delay_another_tenant() -> None:
    pool = Pool(1000, 2, max_batched_tokens=100, max_active=4)
    jobs = [Job(2, 10, tenant="many")] * 200 + [Job(2, 10, arrives=5, tenant="few")]
    steps = steps_of(Run(pool, jobs))
    assert min(index for index, step in enumerate(steps) if "few" in step) <= 11  # when the first of "many" ends


def test_sequence_that_does_not_fit_is_not_overtaken_by_smaller_ones_of_other_tenants() -> None:
    pool = Pool(20, 1, max_batched_tokens=100, max_active=8)
    small = [Job(2, 4, arrives=step, tenant=f"{step}") for step in range(2, 40)]
    run = Run(pool, [Job(2, 8, tenant="a"), Job(16, 2, arrives=1, tenant="large"), *small])
    run.go()
    assert [sequence.request.tenant for sequence in run.started[:2]] == ["a", "large"]


@pytest.mark.parametrize("waiting", [1, 1000])
def test_cancelled_sequences_leave_the_queue(waiting: int) -> None:
    scheduler = Scheduler(block_count=50, block_size=2, max_batched_tokens=50, max_active=1)
    sequences = [Sequence(replace(make_request(), tenant=f"{n % 7}"), [1, 2]) for n in range(waiting)]
    for sequence in sequences:
        scheduler.add(sequence)
    for sequence in sequences:
        scheduler.remove(sequence)
    assert not scheduler.has_work


# --- Prefix cache -----------------------------------------------------------------------------------------------


def test_sequence_skips_the_prefix_that_another_computed() -> None:
    plans: list[list[tuple[int, int]]] = []
    run = Run(Pool(100, 4, max_batched_tokens=50, max_active=4, prefix_cache=True), [Job(18, 1), Job(18, 1, arrives=2)])
    run.on_schedule = lambda plan: plans.append([(chunk.start, chunk.end) for chunk in plan])
    run.go()
    assert plans == [[(0, 18)], [(16, 18)]]
    assert (run.scheduler.looked_up_tokens, run.scheduler.reused_tokens) == (36, 16)


def test_last_token_is_computed_even_if_all_is_cached() -> None:
    plans: list[list[tuple[int, int]]] = []
    run = Run(Pool(100, 4, max_batched_tokens=50, max_active=4, prefix_cache=True), [Job(16, 1), Job(16, 1, arrives=2)])
    run.on_schedule = lambda plan: plans.append([(chunk.start, chunk.end) for chunk in plan])
    run.go()
    assert plans == [[(0, 16)], [(12, 16)]]


def test_other_tokens_or_another_salt_share_nothing() -> None:
    scheduler = Scheduler(block_count=50, block_size=2, max_batched_tokens=50, max_active=4)
    for tokens, salt in (([1, 2, 3, 4, 5], None), ([9, 2, 3, 4, 5], None), ([1, 2, 3, 4, 5], 7), ([1, 2, 3, 4, 5], 8)):
        sequence = Sequence(replace(make_request(), cache_salt=salt), tokens)
        scheduler.add(sequence)
        (chunk,) = scheduler.schedule()
        assert chunk.start == 0
        sequence.computed = chunk.end
        scheduler.remove(sequence)
    assert scheduler.reused_tokens == 0


def test_least_recently_used_block_is_evicted() -> None:
    pool = BlockPool(3)
    first, second, third = pool.allocate(), pool.allocate(), pool.allocate()
    for block in (first, second, third):
        pool.register(block, bytes([block]))
        pool.release([block])
    assert pool.share_prefix([bytes([first])]) == [first]
    pool.release([first])
    assert pool.allocate() == second
    assert pool.share_prefix([bytes([second])]) == []
    assert pool.share_prefix([bytes([third])]) == [third]
    assert pool.available_count == 1


def test_releasing_a_block_twice_is_an_error() -> None:
    pool = BlockPool(1)
    block = pool.allocate()
    pool.release([block])
    with pytest.raises(RuntimeError, match="released twice"):
        pool.release([block])
