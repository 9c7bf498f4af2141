"""Guides that are too large or too deep are refused by the front end, in little time."""

from __future__ import annotations

import time
from typing import Any

import pytest

from frontend.request.parsing import validate
from frontend.request.schemas import COMPLETION_FORM
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.protocol.fields import MAX_CHOICES_OF_GUIDE, MAX_GUIDE_CHARACTERS
from llm_pipeline.protocol.messages import Guide, GuideType

BODY_BYTES = 4 * 2**20
SCHEMA = {"type": "string", "pattern": "a" * MAX_GUIDE_CHARACTERS}


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(depth):
        schema = {"items": schema}
    return schema


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"guided_json": SCHEMA}, "guided_json"),
        ({"guided_json": " " * BODY_BYTES}, "guided_json"),
        ({"guided_json": nested(900)}, "guided_json"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}}, "response_format"),
        ({"structured_outputs": {"json": nested(900)}}, "structured_outputs"),
        ({"guided_regex": "a" * BODY_BYTES}, "guided_regex"),
        ({"guided_grammar": "&" * (MAX_GUIDE_CHARACTERS + 1)}, "guided_grammar"),
        ({"guided_choice": ["&" * 4000] * MAX_CHOICES_OF_GUIDE}, "guided_choice"),
        ({"guided_choice": ["&" * (MAX_GUIDE_CHARACTERS // 2 + 1)]}, "guided_choice"),  # with its escapes
    ],
)
def test_a_guide_beyond_the_limits_is_refused_in_milliseconds(fields: dict[str, Any], param: str) -> None:
    started = time.process_time()
    with pytest.raises(PipelineError) as caught:
        validate(COMPLETION_FORM, {"model": "m", "prompt": "Hi", **fields}, max_choices=8, is_strict=False)
    assert time.process_time() - started < 0.05
    assert (caught.value.code, caught.value.param) == (ErrorCode.VALUE_OUT_OF_RANGE, param)
    assert len(caught.value.message) < 200


def test_the_longest_guide_is_accepted_in_milliseconds() -> None:
    options = ["&" * 30] * MAX_CHOICES_OF_GUIDE
    started = time.process_time()
    request, _ = validate(
        COMPLETION_FORM, {"model": "m", "prompt": "Hi", "guided_choice": options}, max_choices=8, is_strict=False
    )
    assert time.process_time() - started < 0.05
    ((_, guide),) = request.guides.items()
    assert guide.source is not None
    assert len(guide.source) > MAX_GUIDE_CHARACTERS * 0.9


@pytest.mark.parametrize(
    "field",
    [
        {"response_format": {"type": "json_object", "schema": {"const": 1}}},  # llama.cpp, Together
        {"response_format": {"type": "json_object", "schema": '{"const":1}'}},
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "n", "description": "d", "strict": True, "schema": {"const": 1}},
            }
        },
        {"structured_outputs": {"json": {"const": 1}, "disable_any_whitespace": True, "whitespace_pattern": None}},
    ],
)
def test_a_schema_is_followed_wherever_it_stands(field: dict[str, Any]) -> None:
    request, _ = validate(COMPLETION_FORM, {"model": "m", "prompt": "Hi", **field}, max_choices=8, is_strict=False)
    assert list(request.guides.values()) == [Guide(GuideType.JSON_SCHEMA, '{"const":1}')]


@pytest.mark.parametrize("is_strict", [False, True])
@pytest.mark.parametrize(
    ("field", "key"),
    [
        ({"structured_outputs": {"json": {}, "whitespace_pattern": " ?"}}, "whitespace_pattern"),
        ({"structured_outputs": {"json": {}, "disable_additional_properties": True}}, "disable_additional_properties"),
        ({"response_format": {"type": "json_object", "strict": True}}, "strict"),
        ({"response_format": {"type": "text", "schema": {}}}, "schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {}, "x": 1}}}, "json_schema.x"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {}}, "schema": {}}}, "schema"),
    ],
)
def test_a_key_that_is_not_read_is_refused_by_name(field: dict[str, Any], key: str, is_strict: bool) -> None:
    with pytest.raises(PipelineError) as caught:
        validate(COMPLETION_FORM, {"model": "m", "prompt": "Hi", **field}, max_choices=8, is_strict=is_strict)
    assert (caught.value.code, caught.value.param) == (ErrorCode.UNSUPPORTED_PARAMETER, *field)
    assert key in caught.value.message


def test_a_schema_of_a_json_object_must_be_a_schema() -> None:
    field = {"response_format": {"type": "json_object", "schema": 1}}
    with pytest.raises(PipelineError) as caught:
        validate(COMPLETION_FORM, {"model": "m", "prompt": "Hi", **field}, max_choices=8, is_strict=False)
    assert (caught.value.code, caught.value.param) == (ErrorCode.INVALID_TYPE, "response_format")
