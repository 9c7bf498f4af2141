"""The CPU engine's scheduler: no block leaks or has two owners, no plan is empty, and everybody gets done."""

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
    kind: int = 0  # prompts of one kind begin alike


@dataclass(frozen=True)
class Pool:
    """The size of everything that sequences share."""

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
    """Plays the engine: adds, plans, computes, appends tokens, removes; checks the rules at every step."""

    pool: Pool
    jobs: list[Job]
    scheduler: Scheduler = field(init=False)
    live: list[Sequence] = field(default_factory=list)
    finished: list[Sequence] = field(default_factory=list)
    started: list[Sequence] = field(default_factory=list)
    added: list[Sequence] = field(default_factory=list)
    preemption_count: int = 0
    on_plan: Callable[[list[ScheduledChunk]], None] = lambda plan: None

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
        arrivals = [
            (job, Sequence(make_request(max_tokens=job.max_tokens), [job.kind] * job.prompt)) for job in self.jobs
        ]
        for _, sequence in arrivals:  # the prompt decides what `generated` counts from
            object.__setattr__(sequence.request, "prompt_ids", tuple(sequence.tokens))
        for step in range(limit + 1):
            for job, sequence in arrivals:
                if job.arrives == step:
                    self._add(sequence)
                if job.leaves == step and sequence in self.live:
                    self._remove(sequence)
            if self.scheduler.has_work:
                self._step()
        assert not self.live, "not everybody was done in time"
        return self

    def _add(self, sequence: Sequence) -> None:
        self.scheduler.add(sequence)
        self.live.append(sequence)
        self.added.append(sequence)

    def _remove(self, sequence: Sequence) -> None:
        self.scheduler.remove(sequence)
        self.live.remove(sequence)
        assert sequence.blocks == []
        self._check_blocks()

    def _step(self) -> None:
        computed_before = {id(sequence): sequence.computed for sequence in self.live}
        tokens_before = {id(sequence): list(sequence.tokens) for sequence in self.live}
        plan = self.scheduler.plan()
        self.on_plan(plan)
        self._check_plan(plan)
        self._check_blocks()
        for sequence in self.live:
            assert sequence.tokens == tokens_before[id(sequence)], "planning must not change what was generated"
            self.preemption_count += sequence.computed < computed_before[id(sequence)]
        for piece in plan:
            self._compute(piece)

    def _check_plan(self, plan: list[ScheduledChunk]) -> None:
        assert plan, "an empty plan while there is work"
        assert sum(piece.end - piece.start for piece in plan) <= max(self.pool.max_batched_tokens, self.pool.max_active)
        assert len({id(piece.sequence) for piece in plan}) == len(plan), "a sequence twice in one step"
        assert self.scheduler.active_count <= self.pool.max_active
        assert self.scheduler.active_count + self.scheduler.waiting_count == len(self.live)
        for piece in plan:
            assert piece.sequence in self.live
            assert piece.start == piece.sequence.computed
            assert piece.start < piece.end <= len(piece.sequence.tokens)
            assert len(piece.sequence.blocks) * self.pool.block_size >= piece.end, "no room for what is computed"

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
        beginnings = {tuple(sequence.tokens[:end]) for sequence, _ in sharers}
        assert len(beginnings) == 1, "a block with the tokens of another sequence"
        assert len({index for _, index in sharers}) == 1
        assert all(sequence.computed >= end for sequence, _ in sharers), "a block is written while it is shared"

    def _compute(self, piece: ScheduledChunk) -> None:
        sequence = piece.sequence
        if sequence not in self.started:
            self.started.append(sequence)
        sequence.computed = piece.end
        if piece.is_sampled:
            sequence.tokens.append(1)
            if sequence.generated == sequence.request.max_tokens:
                self._remove(sequence)
                self.finished.append(sequence)


@st.composite
def runs(draw: st.DrawFn) -> Run:
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
            leaves = draw(st.none() | st.integers(0, 25).map(lambda delay, arrives=arrives: arrives + delay))
            jobs.append(
                Job(prompt, draw(st.integers(1, pool.capacity - prompt)), arrives, leaves, draw(st.integers(0, 2)))
            )
    return Run(pool, jobs)


@given(runs())
def test_the_rules_hold_whatever_arrives_and_leaves(run: Run) -> None:
    run.go()
    assert run.scheduler.free_block_count == run.pool.block_count
    assert not run.scheduler.has_work


@given(runs())
def test_sequences_start_in_the_order_of_their_arrival(run: Run) -> None:
    run.go()
    order = [sequence for sequence in run.added if sequence in run.started]
    assert run.started == order


def test_a_full_pool_preempts_and_everybody_finishes_with_all_tokens() -> None:
    run = Run(Pool(block_count=4, block_size=2, max_batched_tokens=8, max_active=4), [Job(2, 6), Job(2, 6), Job(2, 6)])
    run.go()
    assert run.preemption_count > 0
    assert [sequence.generated for sequence in run.finished] == [6, 6, 6]
    assert run.finished == run.added  # the oldest first: it is the youngest that gives way


def test_decoding_goes_ahead_of_prefilling_and_the_rest_of_the_budget_is_prefill() -> None:
    plans: list[list[tuple[int, int]]] = []
    run = Run(Pool(100, 2, max_batched_tokens=8, max_active=4), [Job(2, 4), Job(20, 1, arrives=1)])
    run.on_plan = lambda plan: plans.append([(piece.start, piece.end) for piece in plan])
    run.go()
    assert plans == [[(0, 2)], [(2, 3), (0, 7)], [(3, 4), (7, 14)], [(4, 5), (14, 20)]]


def test_sequences_beyond_max_active_wait() -> None:
    run = Run(Pool(100, 2, max_batched_tokens=50, max_active=2), [Job(1, 3)] * 5)
    counts: list[tuple[int, int]] = []
    run.on_plan = lambda plan: counts.append((run.scheduler.active_count, run.scheduler.waiting_count))
    run.go()
    assert counts[0] == (2, 3)


def test_a_budget_below_max_active_still_serves_all_that_decode() -> None:
    run = Run(Pool(100, 2, max_batched_tokens=1, max_active=3), [Job(1, 5)] * 3)
    sizes: list[int] = []
    run.on_plan = lambda plan: sizes.append(len(plan))
    run.go()
    assert sizes == [3] * 5


# --- Shared beginnings -----------------------------------------------------------------------------------------------


def test_a_sequence_starts_behind_what_another_computed() -> None:
    plans: list[list[tuple[int, int]]] = []
    run = Run(Pool(100, 4, max_batched_tokens=50, max_active=4, prefix_cache=True), [Job(18, 1), Job(18, 1, arrives=2)])
    run.on_plan = lambda plan: plans.append([(piece.start, piece.end) for piece in plan])
    run.go()
    assert plans == [[(0, 18)], [(16, 18)]]
    assert (run.scheduler.looked_up_tokens, run.scheduler.reused_tokens) == (36, 16)


def test_the_last_token_is_computed_even_when_all_is_known() -> None:
    plans: list[list[tuple[int, int]]] = []
    run = Run(Pool(100, 4, max_batched_tokens=50, max_active=4, prefix_cache=True), [Job(16, 1), Job(16, 1, arrives=2)])
    run.on_plan = lambda plan: plans.append([(piece.start, piece.end) for piece in plan])
    run.go()
    assert plans == [[(0, 16)], [(12, 16)]]


def test_other_tokens_or_another_salt_share_nothing() -> None:
    scheduler = Scheduler(block_count=50, block_size=2, max_batched_tokens=50, max_active=4)
    for tokens, salt in (([1, 2, 3, 4, 5], None), ([9, 2, 3, 4, 5], None), ([1, 2, 3, 4, 5], 7), ([1, 2, 3, 4, 5], 8)):
        sequence = Sequence(replace(make_request(), cache_salt=salt), tokens)
        scheduler.add(sequence)
        (piece,) = scheduler.plan()
        assert piece.start == 0
        sequence.computed = piece.end
        scheduler.remove(sequence)
    assert scheduler.reused_tokens == 0


def test_new_content_takes_the_place_of_what_was_used_longest_ago() -> None:
    pool = BlockPool(3)
    first, second, third = pool.take(), pool.take(), pool.take()
    for block in (first, second, third):
        pool.name(block, bytes([block]))
        pool.give_back([block])
    assert pool.share([bytes([first])]) == [first]
    pool.give_back([first])
    assert pool.take() == second
    assert pool.share([bytes([second])]) == []
    assert pool.share([bytes([third])]) == [third]
    assert pool.available_count == 1


def test_a_block_given_back_twice_is_an_error() -> None:
    pool = BlockPool(1)
    block = pool.take()
    pool.give_back([block])
    with pytest.raises(RuntimeError, match="given back twice"):
        pool.give_back([block])
