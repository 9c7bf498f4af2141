"""Cheap checks of guides: size, form and counts, in linear time and without recursion."""

from __future__ import annotations

import json
import time
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_pipeline.guides.checks import check_guide
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.protocol.fields import MAX_GUIDE_CHARACTERS, MAX_GUIDE_RULES
from llm_pipeline.protocol.messages import GUIDE_PARAM, Guide, GuideType
from tests.support.hostile_guides import gbnf_chain, lark_chain, schema_chain


@pytest.mark.parametrize(
    ("kind", "text", "reason"),
    [
        ("json_schema", '{"type"', "not valid JSON"),
        ("json_schema", "[]", "not an object"),
        ("json_schema", "3", "not an object"),
        ("json_schema", "[" * 30_000 + "]" * 30_000, "not valid JSON"),
        ("json_schema", "", "empty"),
        ("regex", "", "empty"),
        ("ebnf_grammar", "", "empty"),
        ("structural_tag", "", "empty"),
        ("regex", "a" * (MAX_GUIDE_CHARACTERS + 1), "limit"),
    ],
)
def test_an_invalid_guide_is_rejected_with_the_reason(kind: str, text: str, reason: str) -> None:
    with pytest.raises(PipelineError) as caught:
        check_guide(Guide(GuideType(kind), text))
    assert (caught.value.code, caught.value.param) == (ErrorCode.VALUE_OUT_OF_RANGE, GUIDE_PARAM)
    assert reason in caught.value.message
    assert "\n" not in caught.value.message


@given(st.sampled_from(GuideType), st.text() | st.recursive(st.none() | st.booleans(), st.lists).map(json.dumps))
@settings(max_examples=300)
def test_any_guide_is_accepted_or_rejected(kind: GuideType, text: str) -> None:
    with suppress(PipelineError):
        check_guide(Guide(kind, text))


@pytest.mark.parametrize("guide", [lark_chain(3000), gbnf_chain(4000), schema_chain(900)], ids=["lark", "gbnf", "json"])
def test_a_chain_of_too_many_rules_is_rejected(guide: Guide) -> None:
    assert len(guide.source or "") <= MAX_GUIDE_CHARACTERS
    with pytest.raises(PipelineError, match=f"the limit is {MAX_GUIDE_RULES}"):
        check_guide(guide)


@pytest.mark.parametrize(
    "unit", ["a", " ", "[", "a[", "a[]", "a ", "a.", "a.1", "?", "\n", "a\n", "a:", "a[\n", "[]", "] ", "a.1 "]
)
@pytest.mark.parametrize("kind", GuideType)
def test_a_guide_of_the_largest_size_is_checked_in_milliseconds(kind: GuideType, unit: str) -> None:
    for text in (
        unit * (MAX_GUIDE_CHARACTERS // len(unit)),
        ("a[" + unit * MAX_GUIDE_CHARACTERS)[:MAX_GUIDE_CHARACTERS],
    ):
        started = time.process_time()
        with suppress(PipelineError):
            check_guide(Guide(kind, text))
        assert time.process_time() - started < 0.1


@pytest.mark.parametrize("key", ["items", "not", "$ref"])
def test_a_nested_schema_is_checked_without_recursion(key: str) -> None:
    depth = 500
    with suppress(PipelineError):
        check_guide(Guide(GuideType.JSON_SCHEMA, f'{{"{key}":' * depth + "{}" + "}" * depth))
