"""Puts tools into the messages for templates that know none: a system message describes them, text has the calls."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from frontend.chat.messages import ChatMessage
from frontend.chat.tool_fields import Tool

_INSTRUCTION = (
    "You can call functions. To call one, answer with JSON only, in this form, one call per line:\n"
    '{"name": "<name of the function>", "arguments": {<arguments by name>}}\n'
    "You will get the results, and then answer the user. If no function helps, answer without one. "
    "These are the functions, with the JSON schema of their arguments:"
)


def with_tools(messages: Sequence[ChatMessage], tools: Sequence[Tool]) -> list[ChatMessage]:
    """The messages with the tools in the system message, and with calls and their results as text."""
    text = "\n".join([_INSTRUCTION, *(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)])
    written = without_calls(messages)
    if written and written[0]["role"] in ("system", "developer"):
        first = {**written[0], "content": f"{written[0]['content']}\n\n{text}"}
        return [first, *written[1:]]
    return [{"role": "system", "content": text}, *written]


def without_calls(messages: Sequence[ChatMessage]) -> list[ChatMessage]:
    """The messages with calls and their results as text: templates that know no tools would drop or refuse them."""
    names: dict[str, str] = {}
    written = []
    for message in messages:
        if calls := message.get("tool_calls"):
            names.update((call["id"], call["function"]["name"]) for call in calls)
            parts = [message.get("content") or "", *(_call(call["function"]) for call in calls)]
            message = {**message, "content": "\n".join(part for part in parts if part)}
            del message["tool_calls"]
        elif message["role"] == "tool":
            name = names.get(message.get("tool_call_id", ""), message.get("name", "the function"))
            message = {"role": "user", "content": f"Result of {name}:\n{message['content']}"}
        written.append(message)
    return written


def _call(function: Mapping[str, Any]) -> str:
    return json.dumps({"name": function["name"], "arguments": function["arguments"]}, ensure_ascii=False)
