"""A tenant without a running request gets a slot and blocks, whatever the others hold."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from llm_pipeline.executors.cpu.engine.scheduler import Scheduler, Sequence
from tests.support.sample_requests import make_request


def _start(scheduler: Scheduler, tenant: str, count: int, **options: Any) -> list[Sequence]:
    sequences = [Sequence(replace(make_request(max_tokens=20), tenant=tenant, **options), [1, 2]) for _ in range(count)]
    for sequence in sequences:
        scheduler.add(sequence)
    return sequences


def _compute(scheduler: Scheduler) -> list[Sequence]:
    chunks = scheduler.schedule()
    for chunk in chunks:
        chunk.sequence.computed = chunk.end
        if chunk.is_sampled:
            chunk.sequence.tokens.append(3)
    return [chunk.sequence for chunk in chunks]


def test_a_tenant_with_few_sequences_takes_slots_of_the_one_with_the_most() -> None:
    scheduler = Scheduler(block_count=100, block_size=4, max_batched_tokens=100, max_active=6)
    greedy = _start(scheduler, "greedy", 9)
    assert _compute(scheduler) == greedy[:6]
    first, second, third = _start(scheduler, "other", 3)
    assert _compute(scheduler) == [*greedy[:4], first, second], "two are half of four"
    scheduler.remove(first)
    assert _compute(scheduler) == [*greedy[:4], second, third]
    scheduler.remove(second)
    scheduler.remove(third)
    assert set(_compute(scheduler)) == set(greedy[:6]), "the preempted go on before those that have not started"


def test_slots_follow_the_shares_of_tenants() -> None:
    scheduler = Scheduler(block_count=100, block_size=4, max_batched_tokens=100, max_active=6)
    greedy = _start(scheduler, "greedy", 9)
    _compute(scheduler)
    others = _start(scheduler, "other", 5, tenant_share=2)
    assert _compute(scheduler) == [*greedy[:3], *others[:3]]


def test_a_tenant_without_an_active_sequence_takes_blocks_of_the_one_with_the_most() -> None:
    scheduler = Scheduler(block_count=4, block_size=4, max_batched_tokens=100, max_active=8)
    greedy = _start(scheduler, "greedy", 8)
    assert _compute(scheduler) == greedy[:4]
    (other,) = _start(scheduler, "other", 1)
    assert _compute(scheduler) == [*greedy[:3], other]


def test_tenants_with_one_sequence_each_keep_their_slots() -> None:
    scheduler = Scheduler(block_count=100, block_size=4, max_batched_tokens=100, max_active=3)
    running = [_start(scheduler, tenant, 1)[0] for tenant in "abc"]
    assert _compute(scheduler) == running
    _start(scheduler, "d", 1)
    assert _compute(scheduler) == running


def test_a_less_urgent_sequence_takes_no_slot() -> None:
    scheduler = Scheduler(block_count=100, block_size=4, max_batched_tokens=100, max_active=3)
    running = _start(scheduler, "greedy", 3)
    assert _compute(scheduler) == running
    _start(scheduler, "other", 1, urgency=0.4)
    assert _compute(scheduler) == running


def test_prompts_beside_streams_of_another_tenant_are_computed_in_small_pieces() -> None:
    scheduler = Scheduler(
        block_count=100, block_size=4, max_batched_tokens=100, max_active=4, prompt_tokens_beside_others=8
    )
    (stream,) = _start(scheduler, "stream", 1)
    _compute(scheduler)
    for tenant, expected in (("other", 8), ("stream", 40)):
        prompt = Sequence(replace(make_request(max_tokens=2), tenant=tenant), [1] * 40)
        scheduler.add(prompt)
        counts = {id(chunk.sequence): chunk.end - chunk.start for chunk in scheduler.schedule()}
        assert counts == {id(stream): 1, id(prompt): expected}
        scheduler.remove(prompt)


def _large(scheduler: Scheduler, count: int) -> Sequence:
    sequence = Sequence(replace(make_request(max_tokens=2), prompt_ids=(1,) * count, tenant="other"), [1] * count)
    scheduler.add(sequence)
    return sequence


def test_others_give_way_for_a_large_request_and_take_nothing_back() -> None:
    scheduler = Scheduler(block_count=6, block_size=4, max_batched_tokens=100, max_active=8)
    greedy = _start(scheduler, "greedy", 3)
    _compute(scheduler)
    large = _large(scheduler, 18)
    assert _compute(scheduler) == [greedy[0], large]


def test_nothing_gives_way_for_a_request_that_would_still_not_fit() -> None:
    """It would take its room back in the same step, and give way again in the next."""
    scheduler = Scheduler(block_count=6, block_size=4, max_batched_tokens=100, max_active=8)
    greedy = _start(scheduler, "greedy", 3)
    _compute(scheduler)
    large = _large(scheduler, 20)
    for _ in range(3):
        assert _compute(scheduler) == greedy
    for sequence in greedy:
        scheduler.remove(sequence)
    assert _compute(scheduler) == [large]
