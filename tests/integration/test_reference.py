"""The default engine returns the reference's greedy tokens through HTTP and the whole ensemble."""

from __future__ import annotations

import asyncio
import json
from importlib import resources
from typing import Any

import pytest

from tests.support.stack import MODEL, RunningStack

pytestmark = pytest.mark.triton

CASES: list[dict[str, Any]] = json.loads(
    (resources.files("build_engine") / "cpu" / "reference_tokens" / "smollm2_greedy.json").read_text()
)["cases"]


def greedy_request(case: dict[str, Any]) -> dict[str, Any]:
    return {
        "model": MODEL,
        "prompt": case["prompt_ids"],
        "max_tokens": len(case["greedy_ids"]),
        "temperature": 0,
        "extra_body": {"return_tokens_as_token_ids": True},
    }


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_a_greedy_request_alone_returns_the_reference_tokens(cpu_stack: RunningStack, case: dict[str, Any]) -> None:
    choice = cpu_stack.openai().completions.create(**greedy_request(case)).choices[0]
    assert choice.token_ids == case["greedy_ids"]
    assert choice.text == "".join(f"token_id:{token_id}" for token_id in case["greedy_ids"])


async def test_greedy_tokens_are_the_same_among_32_mixed_requests(cpu_stack: RunningStack) -> None:
    """Half of them sample, stream, stop early or have other lengths; this must not change the greedy half."""
    async with cpu_stack.async_openai(timeout=150) as client:

        async def greedy(case: dict[str, Any]) -> list[int]:
            answer = await client.completions.create(**greedy_request(case))
            token_ids: list[int] = answer.choices[0].token_ids
            return token_ids

        async def noise(number: int) -> None:
            stream = await client.completions.create(
                model=MODEL,
                prompt="Once upon a time, " * (1 + number % 5),
                max_tokens=8 + 5 * (number % 7),
                temperature=0.5 + 0.1 * (number % 10),
                seed=number,
                stop=["\n"] if number % 2 else None,
                stream=True,
            )
            async for _ in stream:
                pass

        crowd = [greedy(CASES[number % len(CASES)]) for number in range(16)]
        results = await asyncio.gather(*crowd, *(noise(number) for number in range(16)))
    for number in range(16):
        assert results[number] == CASES[number % len(CASES)]["greedy_ids"]


async def test_a_seed_gives_the_same_text_alone_and_under_load(cpu_stack: RunningStack) -> None:
    async with cpu_stack.async_openai(timeout=150) as client:

        async def sample(seed: int) -> str:
            answer = await client.completions.create(
                model=MODEL, prompt="The weather today", max_tokens=12, temperature=1, seed=seed
            )
            text: str = answer.choices[0].text
            return text

        alone = [await sample(-1), await sample(2**40 + 7), await sample(7)]
        crowd = await asyncio.gather(*(sample(seed) for seed in (3, -1, 4, 2**40 + 7, 5, 7, 6, -1)))
    assert [crowd[1], crowd[3], crowd[5], crowd[7]] == [*alone, alone[0]]
    assert len(set(alone)) == 3, "all 64 bits of a seed count"


async def test_without_a_seed_two_requests_differ(cpu_stack: RunningStack) -> None:
    async with cpu_stack.async_openai() as client:
        answers = await asyncio.gather(
            *(client.completions.create(model=MODEL, prompt="I think", max_tokens=16, temperature=1.5) for _ in "ab")
        )
    assert answers[0].choices[0].text != answers[1].choices[0].text
