"""Tools for templates that know none."""

from __future__ import annotations

import json
from typing import Any

from frontend.chat.tools.generic_prompt import with_tools, without_calls

_TOOL: dict[str, Any] = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
_CONVERSATION: list[dict[str, Any]] = [
    {"role": "user", "content": "Add."},
    {
        "role": "assistant",
        "content": "I will.",
        "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": {"a": "é"}}}],
    },
    {"role": "tool", "tool_call_id": "1", "content": "3"},
]


def test_tools_come_after_the_system_message() -> None:
    first, *rest = with_tools([{"role": "system", "content": "Be brief."}, *_CONVERSATION], [_TOOL])
    assert first["role"] == "system"
    assert first["content"].startswith("Be brief.\n\n")
    assert first["content"].endswith(json.dumps(_TOOL["function"]))
    assert rest == without_calls(_CONVERSATION)


def test_tools_make_a_system_message_where_there_is_none() -> None:
    first, *rest = with_tools(_CONVERSATION, [_TOOL])
    assert first["role"] == "system"
    assert json.dumps(_TOOL["function"]) in first["content"]
    assert rest == without_calls(_CONVERSATION)


def test_calls_and_results_become_text() -> None:
    assert without_calls(_CONVERSATION) == [
        {"role": "user", "content": "Add."},
        {"role": "assistant", "content": 'I will.\n{"name": "f", "arguments": {"a": "é"}}'},
        {"role": "user", "content": "Result of f:\n3"},
    ]
    assert "tool_calls" in _CONVERSATION[1]  # the client's message is unchanged
