"""The fields of a chat request: those that it shares with completions, and its own."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat.completion_create_params import CompletionCreateParamsNonStreaming

from frontend.chat.schema import CHAT_FORM, ChatCompletionRequest
from frontend.request.parsing import validate
from frontend.request.schemas import CompletionRequest
from frontend.request.unsupported_fields import NO_OP_VALUES
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from tests.support import request_fields

USER = {"role": "user", "content": "Hi"}
REQUIRED = {"model": "m", "messages": [USER]}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
OUT_OF_RANGE, UNSUPPORTED = ErrorCode.VALUE_OUT_OF_RANGE, ErrorCode.UNSUPPORTED_PARAMETER
INVALID_TYPE, MISSING = ErrorCode.INVALID_TYPE, ErrorCode.MISSING_REQUIRED_PARAMETER


def read(fields: dict[str, Any], *, is_strict: bool = False) -> ChatCompletionRequest:
    return validate(CHAT_FORM, {**REQUIRED, **fields}, max_choices=8, is_strict=is_strict)[0]


def refusal(fields: dict[str, Any], *, is_strict: bool = False) -> PipelineError:
    with pytest.raises(PipelineError) as caught:
        read(fields, is_strict=is_strict)
    return caught.value


@pytest.mark.parametrize(
    ("fields", "name", "value"),
    [
        *request_fields.ACCEPTED,
        ({"logprobs": True, "top_logprobs": 20}, "top_logprobs", 20),
        ({"top_logprobs": 0}, "logprobs", False),
        ({"reasoning_effort": "minimal"}, "reasoning_effort", "minimal"),
        ({"chat_template_kwargs": {"enable_thinking": False}}, "chat_template_kwargs", {"enable_thinking": False}),
        ({"documents": [{"title": "a", "text": "b"}]}, "documents", ({"title": "a", "text": "b"},)),
        ({"continue_final_message": True}, "begins_answer", False),
        ({"add_generation_prompt": False}, "begins_answer", False),
        ({}, "begins_answer", True),
        ({}, "add_special_tokens", False),
    ],
)
def test_accepted(fields: dict[str, Any], name: str, value: object) -> None:
    assert getattr(read(fields), name) == value


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        *request_fields.REFUSED,
        ({"logprobs": 1}, INVALID_TYPE, "logprobs"),
        ({"top_logprobs": 1}, OUT_OF_RANGE, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, OUT_OF_RANGE, "top_logprobs"),
        ({"reasoning_effort": "most"}, OUT_OF_RANGE, "reasoning_effort"),
        ({"chat_template_kwargs": []}, INVALID_TYPE, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"messages": []}}, UNSUPPORTED, "chat_template_kwargs.messages"),
        ({"documents": ["a"]}, INVALID_TYPE, "documents"),
        ({"continue_final_message": True, "add_generation_prompt": True}, OUT_OF_RANGE, "continue_final_message"),
    ],
)
def test_refused(fields: dict[str, Any], code: ErrorCode, param: str) -> None:
    error = refusal(fields)
    assert (error.code, error.param) == (code, param)


@pytest.mark.parametrize(
    "fields",
    [
        *request_fields.WITHOUT_EFFECT,
        {"audio": None},
        {"best_of": 1},
        {"echo": False},
        {"function_call": "none"},
        {"functions": []},
        {"metadata": {"a": "b"}},
        {"modalities": ["text"]},
        {"prediction": {"type": "content", "content": "x"}},
        {"prompt_cache_key": "x"},
        {"safety_identifier": "x"},
        {"service_tier": "auto"},
        {"store": False},
        {"tool_choice": "auto"},
        {"tool_choice": "none"},
        {"tools": []},
        {"verbosity": "medium"},
        {"web_search_options": None},
    ],
)
def test_values_without_effect_are_accepted(fields: dict[str, Any]) -> None:
    read(fields, is_strict=True)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        *request_fields.UNSUPPORTED,
        ({"audio": {"voice": "alloy", "format": "wav"}}, "audio"),
        ({"best_of": 2}, "best_of"),
        ({"chat_template": "{{ messages }}"}, "chat_template"),
        ({"echo": True}, "echo"),
        ({"function_call": "auto"}, "function_call"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"prompt": "Hi"}, "prompt"),
        ({"service_tier": "flex"}, "service_tier"),
        ({"store": True}, "store"),
        ({"suffix": "x"}, "suffix"),
        ({"verbosity": "low"}, "verbosity"),
        ({"web_search_options": {}}, "web_search_options"),
    ],
)
def test_unsupported_fields_are_rejected_by_name(fields: dict[str, Any], param: str) -> None:
    error = refusal(fields)
    assert (error.code, error.param) == (UNSUPPORTED, param)


@pytest.mark.parametrize(
    ("name", "instead"), [("functions", "tools"), ("function_call", "tool_choice"), ("prompt", "messages")]
)
def test_deprecated_fields_are_rejected_with_the_one_to_use(name: str, instead: str) -> None:
    assert f"Use {instead} instead" in refusal({name: "x"}).message


@pytest.mark.parametrize(("fields", "param", "code"), request_fields.MALFORMED_GUIDES)
def test_malformed_structured_output_is_rejected_by_name(fields: dict[str, Any], param: str, code: ErrorCode) -> None:
    error = refusal(fields)
    assert (error.code, error.param) == (code, param)


def test_every_field_of_openai_s_reference_is_known() -> None:
    """None is ignored: each is honored, without effect, or rejected by name."""
    known = CHAT_FORM.fields | CHAT_FORM.unsupported.no_op_values.keys()
    assert CompletionCreateParamsNonStreaming.__annotations__.keys() - known == set()


def test_every_field_of_completions_is_known() -> None:
    known = CHAT_FORM.fields | CHAT_FORM.unsupported.no_op_values.keys()
    assert {*CompletionRequest.model_fields, *NO_OP_VALUES} - known == set()


def test_a_field_is_not_both_implemented_and_unsupported() -> None:
    assert CHAT_FORM.fields & CHAT_FORM.unsupported.no_op_values.keys() == set()


def test_unknown_fields_are_counted_in_messages_too() -> None:
    messages = [{**USER, "weight": 1}, {"role": "assistant", "content": "a", "annotations": [], "audio": None}]
    document = {**REQUIRED, "messages": messages, "colour": 1}
    assert validate(CHAT_FORM, document, max_choices=8, is_strict=False)[1] == 2


def test_strict_servers_reject_unknown_fields_of_messages() -> None:
    error = refusal({"messages": [USER, {**USER, "weight": 1}]}, is_strict=True)
    assert (error.code, error.param) == (UNSUPPORTED, "messages[1].weight")


def tool(**fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "a", **fields}}


@pytest.mark.parametrize(
    ("tools", "code", "param"),
    [
        ("add", INVALID_TYPE, "tools"),
        ([1], INVALID_TYPE, "tools[0]"),
        ([{"type": "custom", "custom": {"name": "x"}}], UNSUPPORTED, "tools[0].type"),
        ([{"type": "function"}], INVALID_TYPE, "tools[0].function"),
        ([{"type": "function", "function": {}}], INVALID_TYPE, "tools[0].function.name"),
        ([{"type": "function", "function": {"name": "a b"}}], OUT_OF_RANGE, "tools[0].function.name"),
        ([{"type": "function", "function": {"name": "a" * 65}}], OUT_OF_RANGE, "tools[0].function.name"),
        ([TOOL, TOOL], OUT_OF_RANGE, "tools[1].function.name"),
        (
            [{"type": "function", "function": {"name": "a", "description": 1}}],
            INVALID_TYPE,
            "tools[0].function.description",
        ),
        (
            [{"type": "function", "function": {"name": "a", "parameters": []}}],
            INVALID_TYPE,
            "tools[0].function.parameters",
        ),
        ([{"type": "function", "function": {"name": "a", "strict": 1}}], INVALID_TYPE, "tools[0].function.strict"),
        ([{"type": "function", "function": {"name": f"a{i}"}} for i in range(129)], OUT_OF_RANGE, "tools"),
    ],
)
def test_malformed_tools_are_rejected_by_their_place(tools: Any, code: ErrorCode, param: str) -> None:
    error = refusal({"tools": tools})
    assert (error.code, error.param) == (code, param)


@pytest.mark.parametrize(
    ("choice", "code", "param"),
    [
        ("any", OUT_OF_RANGE, "tool_choice"),
        (1, INVALID_TYPE, "tool_choice"),
        ({"type": "allowed_tools"}, UNSUPPORTED, "tool_choice.type"),
        ({"type": "function", "function": {}}, INVALID_TYPE, "tool_choice.function.name"),
        ({"type": "function", "function": {"name": "sub"}}, OUT_OF_RANGE, "tool_choice.function.name"),
    ],
)
def test_malformed_tool_choices_are_rejected(choice: Any, code: ErrorCode, param: str) -> None:
    error = refusal({"tools": [TOOL], "tool_choice": choice})
    assert (error.code, error.param) == (code, param)


def test_a_required_call_needs_tools() -> None:
    assert refusal({"tool_choice": "required"}).param == "tool_choice"


def test_templates_get_tools_without_nulls_and_without_strict() -> None:
    function = {"name": "add", "description": None, "parameters": {"type": "object", "x": None}, "strict": True}
    tools = read({"tools": [{"type": "function", "function": function}]}).tools
    assert tools.tools == (
        {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "x": None}}},
    )
    assert tools.strict == {"add"}


@given(st.integers(0, 4), st.integers(0, 20))
def test_the_errors_of_messages_name_their_place(before: int, part: int) -> None:
    content = [{"type": "text", "text": "a"}] * part + [{"type": "image_url", "image_url": {"url": "x"}}]
    error = refusal({"messages": [USER] * before + [{"role": "user", "content": content}]})
    assert (error.code, error.param) == (UNSUPPORTED, f"messages[{before}].content[{part}].type")
