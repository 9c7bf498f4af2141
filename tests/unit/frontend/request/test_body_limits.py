"""The budget of bodies is shared fairly between keys, and every byte that is taken comes back."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack, suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontend.request.body_limits import BodyBudget
from frontend.request.parsing_turns import ParsingTurns
from llm_pipeline.protocol.errors import ErrorCode, PipelineError

KIB = 1024


def fill(budget: BodyBudget, holder: str | None, part: int, stack: ExitStack) -> int:
    """Takes bodies of this size until one is refused. Returns the bytes taken."""
    taken = 0
    with suppress(PipelineError):
        while True:
            stack.enter_context(budget.share(holder)).take(part)
            taken += part
    return taken


def test_one_key_may_hold_half_and_leaves_room_for_others() -> None:
    budget = BodyBudget(1200 * KIB)
    with ExitStack() as stack:
        assert fill(budget, "a", 100 * KIB, stack) == 600 * KIB
        assert fill(budget, "b", 100 * KIB, stack) == 300 * KIB
        assert fill(budget, "c", 50 * KIB, stack) == 150 * KIB
        with pytest.raises(PipelineError) as refused, budget.share("a") as share:
            share.take(1)
        assert refused.value.code is ErrorCode.SERVICE_UNAVAILABLE
        assert refused.value.retry_after_s is not None
    assert budget.free == 1200 * KIB


def test_without_keys_small_bodies_are_served_beside_large_ones() -> None:
    budget = BodyBudget(1200 * KIB)
    with ExitStack() as stack:
        assert fill(budget, None, 100 * KIB, stack) == 600 * KIB
        assert fill(budget, None, 50 * KIB, stack) == 600 * KIB
        assert budget.free == 0


@given(st.lists(st.tuples(st.sampled_from(["a", "b", None]), st.lists(st.integers(0, 400_000), max_size=5))))
def test_budget_is_never_exceeded_and_comes_back(bodies: list[tuple[str | None, list[int]]]) -> None:
    budget = BodyBudget(1_000_000)
    with ExitStack() as stack:
        for holder, parts in bodies:
            share = stack.enter_context(budget.share(holder))
            for part in parts:
                with suppress(PipelineError):
                    share.take(part)
                assert 0 <= budget.free <= 1_000_000
    assert budget.free == 1_000_000


async def test_parsing_turns_alternate_between_keys() -> None:
    turns, order = ParsingTurns(), []

    async def parse(holder: str) -> None:
        async with turns.turn(holder):
            order.append(holder)
            await asyncio.sleep(0)

    await asyncio.gather(*map(parse, "aaaabbc"))
    assert "".join(order) == "abcabaa" or "".join(order) == "aabcaba"


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=12), st.data())
def test_parsing_turns_survive_cancellation(requests: list[tuple[str, bool]], data: st.DataObject) -> None:
    """One at a time, and the next one always gets its turn, also if others are cancelled while they wait or parse."""

    async def run() -> None:
        turns, inside, done = ParsingTurns(), 0, 0

        async def parse(holder: str) -> None:
            nonlocal inside, done
            async with turns.turn(holder):
                inside += 1
                assert inside == 1
                try:
                    await asyncio.sleep(0)
                finally:
                    inside -= 1
            done += 1

        tasks = [asyncio.create_task(parse(holder)) for holder, _ in requests]
        for task, (_, is_cancelled) in zip(tasks, requests, strict=True):
            if is_cancelled:
                for _ in range(data.draw(st.integers(0, 5))):
                    await asyncio.sleep(0)
                task.cancel()
        results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5)
        assert not any(isinstance(result, AssertionError) for result in results)
        assert done == sum(result is None for result in results)
        async with turns.turn("z"):
            assert inside == 0

    asyncio.run(run())
