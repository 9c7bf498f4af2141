"""Tensors for NVIDIA's ensemble, and errors for fields that it has no input for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from frontend.backends.inflight_batcher.tensors import GUIDE, GUIDE_TYPE, REQUIRED_INPUTS, request_arrays
from frontend.request.schemas import CompletionRequest
from frontend.request.to_parameters import completion_input, parameters_of
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.protocol.messages import CompletionParameters

GUIDE_INPUTS = {GUIDE_TYPE.name, GUIDE.name}
INPUTS = {
    *REQUIRED_INPUTS,
    *("top_k", "top_p", "temperature", "seed", "stream", "stop_words"),
    *("exclude_input_in_output", "return_num_input_tokens", "end_id", "min_tokens"),
}
JSON_SCHEMA = {"type": "json_schema", "json_schema": {"name": "any", "schema": {"type": "object"}}}


def parameters(**fields: Any) -> CompletionParameters:
    request = CompletionRequest.model_validate({"model": "m", "prompt": "Hi", **fields})
    return parameters_of(request, completion_input(request), "request")[0]


def sent(inputs: set[str], **fields: Any) -> dict[str, Any]:
    arrays = request_arrays(parameters(**fields), inputs, max_tokens=4, lora_task_id=None)
    return {spec.name: values.ravel().tolist() for spec, values in arrays}


@pytest.mark.parametrize("fields", [{"response_format": JSON_SCHEMA}, {"guided_json": {"type": "object"}}])
def test_guide_is_sent_to_the_ensemble(fields: dict[str, Any]) -> None:
    tensors = sent(INPUTS | GUIDE_INPUTS, **fields)
    assert tensors[GUIDE_TYPE.name] == [b"json_schema"]
    assert tensors[GUIDE.name] == [b'{"type":"object"}']


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": JSON_SCHEMA}, "response_format"),
        ({"guided_regex": "a+"}, "guided_regex"),
        ({"best_of": 2}, "best_of"),
        ({"logprobs": 1}, "logprobs"),
        ({"logprobs": 1, "best_of": 2}, "logprobs"),
        ({"return_token_ids": True}, "return_token_ids"),
        ({"return_tokens_as_token_ids": True}, "return_tokens_as_token_ids"),
        ({"echo": True}, "echo"),
        ({"suffix": "x"}, "suffix"),
        ({"stop_token_ids": [3]}, "stop_token_ids"),
        ({"logit_bias": {"3": 1}}, "logit_bias"),
        ({"truncate_prompt_tokens": 3}, "truncate_prompt_tokens"),
        ({"add_special_tokens": False}, "add_special_tokens"),
        ({"priority": 1}, "priority"),
    ],
)
def test_field_without_an_input_is_unsupported_under_its_api_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(PipelineError) as caught:
        sent(INPUTS, **fields)
    assert (caught.value.code, caught.value.param) == (ErrorCode.UNSUPPORTED_PARAMETER, param)
    assert caught.value.message.startswith(f"{param} ")


def test_tenant_of_an_api_key_is_not_sent_and_no_error() -> None:
    request = replace(parameters(), tenant="0123", tenant_share=3)
    names = {spec.name for spec, _ in request_arrays(request, INPUTS, max_tokens=4, lora_task_id=None)}
    assert not names & {"tenant", "tenant_share"}
