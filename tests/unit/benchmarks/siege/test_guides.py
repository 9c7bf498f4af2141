"""Guides of the siege: requests as clients can send them, each a new one, and the same again from the same seed."""

from __future__ import annotations

import asyncio
import json
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.siege.guides.expensive import KINDS, LARGE, SMALL
from benchmarks.siege.guides.random_guides import SORTS, random_fields
from llm_pipeline.protocol.fields import MAX_GUIDE_CHARACTERS, MAX_GUIDE_RULES
from tests.support.app import in_process
from tests.support.guide_strategies import expensive_guides, random_guides

GUIDE_FIELDS = {
    "guided_json",
    "guided_regex",
    "guided_grammar",
    "guided_choice",
    "response_format",
    "structured_outputs",
}


def guide_text(fields: dict[str, Any]) -> str:
    (value,) = fields.values()
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


@given(random_guides())
def test_a_random_guide_is_a_body_of_json_with_a_guide_in_it(fields: dict[str, Any]) -> None:
    assert json.loads(json.dumps(fields)) == fields
    assert fields.keys() & GUIDE_FIELDS == fields.keys()


@pytest.mark.parametrize("sort", SORTS)
def test_random_guides_differ_and_repeat_by_seed(sort: str) -> None:
    first = [random_fields(sort, 1, number) for number in range(50)]
    assert first == [random_fields(sort, 1, number) for number in range(50)]
    assert first != [random_fields(sort, 2, number) for number in range(50)]
    assert len({json.dumps(fields) for fields in first}) > 25


@given(expensive_guides())
def test_an_expensive_guide_is_within_the_limits_of_length_and_rules(fields: dict[str, Any]) -> None:
    """It reaches the compiler: a guide beyond these limits is refused before it costs anything."""
    text = guide_text(fields)
    assert len(text) <= MAX_GUIDE_CHARACTERS
    assert text.count("\n") + 1 <= MAX_GUIDE_RULES


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_each_expensive_guide_is_a_new_one(kind: str, size: int) -> None:
    source = Random(1)
    guides = [guide_text(KINDS[kind](source, size)) for _ in range(20)]
    assert len(set(guides)) == 20


@settings(max_examples=25)
@given(st.lists(random_guides(), min_size=5, max_size=5))
def test_the_front_end_answers_random_guides_with_a_completion_or_a_400(guides: list[dict[str, Any]]) -> None:
    async def send() -> None:
        async with in_process() as running:
            for fields in guides:
                response = await running.complete(**fields)
                assert response.status_code in {200, 400}, (fields, response.text)
                if response.status_code == 400:
                    assert response.json()["error"]["code"]

    asyncio.run(send())
