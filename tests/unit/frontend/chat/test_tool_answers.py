"""Tools and reasoning over HTTP with a fake engine: the guide that it gets, and the answer made of its text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import httpx
import pytest

from frontend.backends.fake import CHAT_FORMAT, FakeGenerator, chunks
from llm_pipeline.protocol.messages import FinishReason, GuideType
from llm_pipeline.protocol.model_info import DEFAULT_TEMPLATE, ChatFormat
from tests.support.app import Running, in_process
from tests.support.sse_events import events

_TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {}}}}},
    {"type": "function", "function": {"name": "g"}},
]
_HERMES = "{% if tools %}{{ tools | tojson }}<tool_call></tool_call>{% endif %}{{ messages[-1].content }}"
_THINKING = "{{ messages[-1].content }}{% if false %}</think>{% endif %}"
_CALL = ('<tool_call>\n{"name": "f", ', '"arguments": {"a"', ": 1}}\n</tool_call>")


def generator(
    *texts: str, template: str = _HERMES, reason: FinishReason = FinishReason.STOP, **changes: Any
) -> FakeGenerator:
    """An engine that writes these texts, one token each."""
    result = FakeGenerator(lambda _: chunks(*texts, reason=reason))
    chat: ChatFormat = replace(CHAT_FORMAT, templates=((DEFAULT_TEMPLATE, template),), **changes)
    result.model_info = replace(result.model_info, chat=chat)
    return result


async def both(app: Running, **fields: Any) -> tuple[dict[str, Any], str]:
    """The message and the finish reason of a whole answer, which a streamed one must equal."""
    whole = await app.chat(**fields)
    streamed = await app.chat(**fields, stream=True)
    assert whole.status_code == streamed.status_code == 200, whole.text
    (choice,) = whole.json()["choices"]
    sent = events(streamed.text)
    assert added_up(sent) == {key: value for key, value in choice["message"].items() if key != "refusal"}
    assert sent[-1]["choices"][0]["finish_reason"] == choice["finish_reason"]
    return choice["message"], choice["finish_reason"]


def added_up(sent: Sequence[Any]) -> dict[str, Any]:
    """The message of a stream, as clients put it together; the ids of calls are random."""
    message: dict[str, Any] = {"role": "assistant", "content": ""}
    calls: list[dict[str, Any]] = []
    for event in sent:
        delta = event["choices"][0]["delta"]
        message["content"] += delta.get("content") or ""
        if "reasoning_content" in delta:
            message["reasoning_content"] = message.get("reasoning_content", "") + delta["reasoning_content"]
        for part in delta.get("tool_calls", ()):
            if "id" in part:
                assert part["index"] == len(calls)
                calls.append({"id": part["id"], "type": part["type"], "function": dict(part["function"])})
            else:
                calls[part["index"]]["function"]["arguments"] += part["function"]["arguments"]
    if calls:
        message |= {"content": message["content"] or None, "tool_calls": calls}
    return message


@pytest.fixture(autouse=True)
def _fixed_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secrets.choice", lambda characters: characters[0])


async def test_a_call_is_returned_as_a_tool_call() -> None:
    async with in_process(generator("Let me", " see.\n", *_CALL)) as app:
        message, reason = await both(app, tools=_TOOLS)
    (call,) = message["tool_calls"]
    assert call == {"id": "call_" + "a" * 24, "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    assert (message["content"], reason) == ("Let me see.", "tool_calls")


async def test_an_answer_of_calls_alone_has_no_content() -> None:
    async with in_process(generator(*_CALL, "\n", *_CALL)) as app:
        message, reason = await both(app, tools=_TOOLS)
        only, _ = await both(app, tools=_TOOLS, parallel_tool_calls=False)
    assert (message["content"], len(message["tool_calls"]), reason) == (None, 2, "tool_calls")
    assert len(only["tool_calls"]) == 1


async def test_a_call_cut_by_the_token_limit_says_so() -> None:
    async with in_process(generator(*_CALL[:2], reason=FinishReason.LENGTH)) as app:
        message, reason = await both(app, tools=_TOOLS)
    assert (message["tool_calls"][0]["function"]["arguments"], reason) == ('{"a"', "length")


async def test_without_tools_nothing_is_a_call() -> None:
    async with in_process(generator(*_CALL)) as app:
        for fields in ({}, {"tools": _TOOLS, "tool_choice": "none"}):
            message, reason = await both(app, **fields)
            assert (message["content"], reason) == ("".join(_CALL), "stop")
            assert "tool_calls" not in message


async def guide_of(app: Running, **fields: Any) -> dict[str, Any] | None:
    await app.chat(tools=_TOOLS, **fields)
    guide = app.generator.requests[-1].guide
    if guide is None:
        return None
    assert guide.type is GuideType.STRUCTURAL_TAG
    return json.loads(guide.source or "")["format"]  # type: ignore[no-any-return]


async def test_only_what_must_be_enforced_is_guided() -> None:
    async with in_process(generator(*_CALL)) as app:
        assert await guide_of(app) is None
        assert await guide_of(app, tool_choice="auto") is None
        assert await guide_of(app, tool_choice="none") is None
        required = await guide_of(app, tool_choice="required")
        named = await guide_of(app, tool_choice={"type": "function", "function": {"name": "g"}})
        assert app.generator.requests[-1].guide_param == "tools"
    assert required is not None
    assert [tag["begin"] for tag in required["tags"]] == [
        f'<tool_call>\n{{"name": "{name}", "arguments": ' for name in ("f", "g")
    ]
    assert named is not None
    assert [tag["begin"] for tag in named["elements"]] == ['<tool_call>\n{"name": "g", "arguments": ']


async def test_a_strict_function_is_guided_beside_text() -> None:
    strict = {"type": "function", "function": {**_TOOLS[0]["function"], "strict": True}}
    async with in_process(generator(*_CALL)) as app:
        await app.chat(tools=[strict, _TOOLS[1]])
        guide = app.generator.requests[-1].guide
    assert guide is not None
    form = json.loads(guide.source or "")["format"]
    schemas = [tag["content"]["json_schema"] for tag in form["tags"]]
    assert form["type"] == "triggered_tags"
    assert schemas == [{"type": "object", "properties": {"a": {}}, "additionalProperties": False}, {"type": "object"}]


async def test_tools_that_make_too_long_a_guide_are_refused() -> None:
    tools = [
        {"type": "function", "function": {"name": f"f{i}", "parameters": {"properties": {"a": {"enum": ["x" * 1000]}}}}}
        for i in range(100)
    ]
    async with in_process(generator("")) as app:
        response = await app.chat(tools=tools, tool_choice="required")
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, "tools")
    assert "the limit is 65536" in error["message"]


async def test_tools_are_described_to_a_model_whose_template_has_none() -> None:
    template = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    async with in_process(generator('{"name": "g", "arguments": {}}', template=template)) as app:
        message, reason = await both(app, tools=_TOOLS)
        prompt = app.generator.requests[-1].prompt_text or ""
    assert prompt.startswith("system: You can call functions.")
    assert prompt.endswith("user: Hi\n")
    assert (message["tool_calls"][0]["function"], reason) == ({"name": "g", "arguments": "{}"}, "tool_calls")


async def test_markers_that_are_special_tokens_are_found_and_the_others_removed() -> None:
    texts = ("[TOOL_CALLS]", "f", "[ARGS]", '{"a": 1}', "<|im_end|>")
    special = ("[TOOL_CALLS]", "[ARGS]", "<|im_end|>")
    template = "{% if tools %}[TOOL_CALLS][ARGS]{% endif %}"
    async with in_process(generator(*texts, template=template, special_tokens=special)) as app:
        message, reason = await both(app, tools=_TOOLS)
        await app.chat()
        assert [sent.skip_special_tokens for sent in app.generator.requests] == [False, False, True]
    (call,) = message["tool_calls"]
    assert call["id"] == "a" * 9
    assert (call["function"], message["content"], reason) == (
        {"name": "f", "arguments": '{"a": 1}'},
        None,
        "tool_calls",
    )


# --- Reasoning --------------------------------------------------------------------------------------------------------


async def test_reasoning_is_not_content() -> None:
    async with in_process(generator("<think>\nHm", ".\n</think>\n\nHel", "lo", template=_THINKING)) as app:
        message, _ = await both(app)
        hidden = (await app.chat(include_reasoning=False)).json()["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("Hm.", "Hello")
    assert (hidden["content"], "reasoning_content" in hidden) == ("Hello", False)


async def test_reasoning_may_begin_in_the_prompt() -> None:
    async with in_process(generator("Hm", "</think>Hello", template=_THINKING + "<think>\n")) as app:
        message, _ = await both(app)
        guided = await app.chat(response_format={"type": "json_object"})
        guide = app.generator.requests[-1].guide
    assert (message["reasoning_content"], message["content"]) == ("Hm", "Hello")
    assert guided.status_code == 200
    assert guide is not None
    assert [part["type"] for part in json.loads(guide.source or "")["format"]["elements"]] == [
        "tag",
        "regex",
        "json_schema",
    ]


async def test_a_setting_leaves_reasoning_in_the_content() -> None:
    async with in_process(generator("<think>a</think>b", template=_THINKING), chat_separate_reasoning=False) as app:
        message, _ = await both(app)
    assert (message["content"], "reasoning_content" in message) == ("<think>a</think>b", False)


async def test_a_grammar_after_reasoning_is_refused_by_name() -> None:
    async with in_process(generator("", template=_THINKING + "<think>\n")) as app:
        response: httpx.Response = await app.chat(structured_outputs={"grammar": 'start: "a"'})
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (400, "structured_outputs", "unsupported_parameter")
