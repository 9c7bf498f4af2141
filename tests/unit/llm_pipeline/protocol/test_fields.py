"""The table of request fields agrees with the messages that it describes."""

from __future__ import annotations

from dataclasses import fields
from typing import get_args

import pytest

from frontend.request.schemas import CompletionRequest
from llm_pipeline.protocol.executor_names import ExecutorName
from llm_pipeline.protocol.field_kinds import NumberField, Range, RequestField
from llm_pipeline.protocol.fields import FIELDS, SAMPLING_EXTENSIONS, SAMPLING_NUMBERS, limits_of, range_of
from llm_pipeline.protocol.messages import CompletionParameters, SamplingParams
from llm_pipeline.protocol.tensors import ENSEMBLE_INPUTS

# Triton has a request id of its own; errors get the client's names on the way back.
NOT_SENT = {"request_id", "guide_param", "token_limit_param", "prompt_param"}


def test_every_parameter_has_one_row() -> None:
    names = [field.name for field in FIELDS]
    assert sorted(names) == sorted({field.name for field in fields(CompletionParameters)} - NOT_SENT)


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.name)
def test_default_is_that_of_the_message(field: RequestField) -> None:
    defaults = {parameter.name: parameter.default for parameter in fields(CompletionParameters)}
    if field.name != "request_key":
        assert field.default == defaults[field.name]


@pytest.mark.parametrize("field", SAMPLING_NUMBERS, ids=lambda field: field.name)
def test_neutral_value_is_the_default_of_sampling_params(field: NumberField) -> None:
    assert field.neutral == getattr(SamplingParams(), field.name)
    assert field.range is not None
    assert field.neutral is not None
    assert field.neutral in field.range


def test_extensions_are_fields_of_sampling_params_and_name_known_executors() -> None:
    assert set(SAMPLING_EXTENSIONS) <= {field.name for field in fields(SamplingParams)}
    assert {name for field in FIELDS for name in field.executors or ()} <= set(get_args(ExecutorName))


def test_tensor_names_are_unique() -> None:
    names = [spec.name for spec in ENSEMBLE_INPUTS]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", ["temperature", "top_k", "repetition_penalty", "seed", "priority"])
def test_http_schema_has_the_bounds_of_the_table(name: str) -> None:
    number, _ = CompletionRequest.model_json_schema()["properties"][name]["anyOf"]
    assert Range(number["minimum"], number["maximum"]) == range_of(name)


def test_http_schema_has_the_limits_of_string_lists() -> None:
    _, texts, _ = CompletionRequest.model_json_schema()["properties"]["stop"]["anyOf"]
    limits = limits_of("stop")
    assert (texts["maxItems"], texts["items"]["maxLength"]) == (limits.max_count, limits.max_characters)


@pytest.mark.parametrize(
    ("value", "is_inside"), [(0, True), (1, True), (-0.1, False), (1.1, False), (float("nan"), False)]
)
def test_range_includes_its_bounds(value: float, is_inside: bool) -> None:
    assert (value in Range(0, 1)) is is_inside
