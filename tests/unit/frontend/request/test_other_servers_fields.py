"""Fields of other completions servers that change the result: rejected with the field to use, not ignored."""

from __future__ import annotations

from typing import Any

import pytest

from frontend.request.parsing import validate
from frontend.request.schemas import COMPLETION_FORM
from llm_pipeline.protocol.errors import ErrorCode, PipelineError

REQUIRED = {"model": "m", "prompt": "Hi"}


def refusal(fields: dict[str, Any]) -> PipelineError:
    with pytest.raises(PipelineError) as caught:
        validate(COMPLETION_FORM, {**REQUIRED, **fields}, max_choices=8, is_strict=False)
    return caught.value


@pytest.mark.parametrize(
    ("name", "value", "instead"),
    [
        ("regex", "a+", "Use structured_outputs.regex"),
        ("ebnf", 'root ::= "a"', "Use structured_outputs.grammar"),
        ("grammar", 'root ::= "a"', "Use structured_outputs.grammar"),
        ("json_schema", {}, "Use response_format"),
        ("json_schema", "{}", "Use response_format"),
        ("prompt_logprobs", 1, "Use echo"),
        ("stop_regex", "[0-9]", "Omit stop_regex"),
        ("logprob_token_ids", [1], "Omit logprob_token_ids"),
    ],
)
def test_fields_of_other_servers_are_rejected_with_advice(name: str, value: object, instead: str) -> None:
    error = refusal({name: value})
    assert (error.code, error.param) == (ErrorCode.UNSUPPORTED_PARAMETER, name)
    assert instead in error.message


@pytest.mark.parametrize(
    "fields",
    [{"grammar": ""}, {"regex": ""}, {"ebnf": None}, {"json_schema": None}, {"stop_regex": []}],
    ids=str,
)
def test_their_values_without_effect_are_accepted(fields: dict[str, Any]) -> None:
    validate(COMPLETION_FORM, {**REQUIRED, **fields}, max_choices=8, is_strict=True)
