"""Messages become what templates read; malformed ones are rejected by their place."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontend.chat.messages import MAX_MESSAGES, ChatMessage
from frontend.chat.schema import CHAT_FORM
from frontend.request.parsing import validate
from llm_pipeline.protocol.errors import ErrorCode, PipelineError

INVALID_TYPE, MISSING = ErrorCode.INVALID_TYPE, ErrorCode.MISSING_REQUIRED_PARAMETER
OUT_OF_RANGE, UNSUPPORTED = ErrorCode.VALUE_OUT_OF_RANGE, ErrorCode.UNSUPPORTED_PARAMETER
CALL = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}


def read(*messages: Any) -> tuple[ChatMessage, ...]:
    document = {"model": "m", "messages": [*messages]}
    return validate(CHAT_FORM, document, max_choices=1, is_strict=True)[0].messages


def assistant(**fields: Any) -> ChatMessage:
    (message,) = read({"role": "assistant", **fields})
    return message


def part(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


@pytest.mark.parametrize("role", ["developer", "system", "user", "assistant", "tool"])
def test_every_role_is_passed_on(role: str) -> None:
    assert read({"role": role, "content": "a"}) == ({"role": role, "content": "a"},)


@given(st.lists(st.text(), min_size=1, max_size=5))
def test_text_parts_become_one_string_with_a_line_end_between_two(texts: list[str]) -> None:
    assert read({"role": "user", "content": [part(text) for text in texts]})[0]["content"] == "\n".join(texts)


def test_names_and_ids_are_passed_on() -> None:
    assert read(
        {"role": "user", "content": "", "name": "Ann"}, {"role": "tool", "content": "3", "tool_call_id": "call_1"}
    ) == ({"role": "user", "content": "", "name": "Ann"}, {"role": "tool", "content": "3", "tool_call_id": "call_1"})


def test_the_arguments_of_calls_become_objects() -> None:
    message = assistant(tool_calls=[CALL])
    assert message["content"] is None
    assert message["tool_calls"] == [{**CALL, "function": {"name": "add", "arguments": {"a": 1}}}]


@given(st.dictionaries(st.text(), st.integers() | st.text() | st.booleans() | st.none()))
def test_arguments_keep_their_values(arguments: dict[str, Any]) -> None:
    function = {"name": "f", "arguments": json.dumps(arguments)}
    (call,) = assistant(tool_calls=[{"id": "1", "function": function}])["tool_calls"]
    assert call["function"]["arguments"] == arguments


@pytest.mark.parametrize("arguments", ['{"a": 1', "[1]", "1", "text"])
def test_arguments_that_are_no_object_stay_as_they_are(arguments: str) -> None:
    function = {"name": "f", "arguments": arguments}
    (call,) = assistant(tool_calls=[{"id": "1", "function": function}])["tool_calls"]
    assert call["function"]["arguments"] == arguments


@pytest.mark.parametrize("arguments", [None, "", {}, "{}"])
def test_missing_arguments_are_an_empty_object(arguments: Any) -> None:
    function = {"name": "f", "arguments": arguments}
    (call,) = assistant(tool_calls=[{"id": "1", "function": function}])["tool_calls"]
    assert call["function"]["arguments"] == {}


def test_a_refusal_is_the_content_of_a_message_without_one() -> None:
    assert assistant(content=None, refusal="No.")["content"] == "No."
    assert assistant(content=[{"type": "refusal", "refusal": "No."}])["content"] == "No."


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_reasoning_is_passed_on_under_the_name_that_templates_read(name: str) -> None:
    assert assistant(content="a", **{name: "b"}) == {"role": "assistant", "content": "a", "reasoning_content": "b"}


def test_an_answer_of_this_api_can_be_sent_back_as_it_is() -> None:
    answer: dict[str, Any] = {"content": "a", "refusal": None, "annotations": [], "audio": None, "function_call": None}
    assert assistant(**answer, tool_calls=None) == {"role": "assistant", "content": "a"}


@pytest.mark.parametrize(
    ("message", "code", "place"),
    [
        ("Hi", INVALID_TYPE, ""),
        ({"content": "a"}, MISSING, ".role"),
        ({"role": "bot", "content": "a"}, OUT_OF_RANGE, ".role"),
        ({"role": ["user"], "content": "a"}, OUT_OF_RANGE, ".role"),
        ({"role": "function", "name": "f", "content": "a"}, UNSUPPORTED, ".role"),
        ({"role": "user"}, MISSING, ".content"),
        ({"role": "user", "content": None}, MISSING, ".content"),
        ({"role": "assistant"}, MISSING, ".content"),
        ({"role": "assistant", "tool_calls": []}, MISSING, ".content"),
        ({"role": "user", "content": 1}, INVALID_TYPE, ".content"),
        ({"role": "user", "content": []}, OUT_OF_RANGE, ".content"),
        ({"role": "user", "content": ["a"]}, INVALID_TYPE, ".content[0]"),
        ({"role": "user", "content": [{"text": "a"}]}, INVALID_TYPE, ".content[0].type"),
        ({"role": "user", "content": [part("a"), {"type": "text"}]}, INVALID_TYPE, ".content[1].text"),
        ({"role": "user", "content": [{"type": "refusal", "refusal": "a"}]}, UNSUPPORTED, ".content[0].type"),
        ({"role": "user", "content": [{"type": "input_audio"}]}, UNSUPPORTED, ".content[0].type"),
        ({"role": "user", "content": "a", "name": 1}, INVALID_TYPE, ".name"),
        ({"role": "tool", "content": "a", "tool_call_id": 1}, INVALID_TYPE, ".tool_call_id"),
        ({"role": "assistant", "content": "a", "audio": {"id": "x"}}, UNSUPPORTED, ".audio"),
        ({"role": "assistant", "content": "a", "function_call": {}}, UNSUPPORTED, ".function_call"),
        ({"role": "assistant", "content": "a", "refusal": 1}, INVALID_TYPE, ".refusal"),
        ({"role": "assistant", "tool_calls": {}}, INVALID_TYPE, ".tool_calls"),
        ({"role": "assistant", "tool_calls": [1]}, INVALID_TYPE, ".tool_calls[0]"),
        ({"role": "assistant", "tool_calls": [{**CALL, "id": None}]}, INVALID_TYPE, ".tool_calls[0].id"),
        ({"role": "assistant", "tool_calls": [{**CALL, "type": "custom"}]}, UNSUPPORTED, ".tool_calls[0].type"),
        ({"role": "assistant", "tool_calls": [{"id": "1"}]}, INVALID_TYPE, ".tool_calls[0].function"),
        (
            {"role": "assistant", "tool_calls": [{"id": "1", "function": {}}]},
            INVALID_TYPE,
            ".tool_calls[0].function.name",
        ),
        (
            {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": []}}]},
            INVALID_TYPE,
            ".tool_calls[0].function.arguments",
        ),
    ],
)
def test_malformed_messages_are_rejected_by_their_place(message: Any, code: ErrorCode, place: str) -> None:
    with pytest.raises(PipelineError) as caught:
        read({"role": "user", "content": "a"}, message)
    assert (caught.value.code, caught.value.param) == (code, f"messages[1]{place}")
    assert caught.value.message.startswith(f"messages[1]{place} ")


@pytest.mark.parametrize("messages", [[], "Hi", [{"role": "user", "content": "a"}] * (MAX_MESSAGES + 1)])
def test_the_list_of_messages_is_bounded(messages: Any) -> None:
    with pytest.raises(PipelineError) as caught:
        validate(CHAT_FORM, {"model": "m", "messages": messages}, max_choices=1, is_strict=False)
    assert caught.value.param == "messages"
