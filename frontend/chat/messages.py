"""Validates the messages of a chat, and writes them as templates read them, in the form of transformers' templates.

A content of several text parts becomes one string with a line end between two parts, as in vLLM (the function
`_parse_chat_message_content_parts` in vllm/entrypoints/chat_utils.py). The arguments of a tool call become an object:
templates write it with `tojson`. Arguments that are no JSON object stay a string: clients send back calls that were cut
off.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NoReturn, TypeAlias

from pydantic import PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from llm_pipeline.protocol.errors import ErrorCode

ChatMessage: TypeAlias = dict[str, Any]

MAX_MESSAGES = 2048
MAX_PARTS = 1024  # of one content
ROLES = ("developer", "system", "user", "assistant", "tool")
_MAX_NAME_CHARACTERS = 64  # of a key or a type that an error repeats
_SHARED_KEYS = frozenset({"role", "content", "name"})
_KEYS = {
    "developer": _SHARED_KEYS,
    "system": _SHARED_KEYS,
    "user": _SHARED_KEYS,
    # `annotations` is in OpenAI's answers, which clients send back as they are.
    "assistant": _SHARED_KEYS
    | {"refusal", "tool_calls", "reasoning_content", "reasoning", "audio", "function_call", "annotations"},
    "tool": _SHARED_KEYS | {"tool_call_id"},
}
_REFUSED = {
    "audio": "This model has no audio. Omit audio",
    "function_call": "function_call is deprecated. Use tool_calls instead",
}


def fail(path: str, message: str, code: ErrorCode = ErrorCode.INVALID_TYPE) -> NoReturn:
    """Raises the error of the value at `path` below the field, such as "[2].content"."""
    raise PydanticCustomError(code.value, message, {"path": path})


def _messages(value: Any) -> tuple[ChatMessage, ...]:
    if not isinstance(value, list):
        fail("", "must be a list of messages")
    if not value:
        fail("", "is an empty list. Send at least one message", ErrorCode.VALUE_OUT_OF_RANGE)
    if len(value) > MAX_MESSAGES:
        fail("", f"must contain at most {MAX_MESSAGES} messages", ErrorCode.VALUE_OUT_OF_RANGE)
    return tuple(_message(f"[{index}]", message) for index, message in enumerate(value))


def _message(path: str, value: Any) -> ChatMessage:
    if not isinstance(value, dict):
        fail(path, "must be an object with a role and a content")
    role = value.get("role")
    if role is None:
        fail(f"{path}.role", "is required", ErrorCode.MISSING_REQUIRED_PARAMETER)
    if role == "function":
        fail(f"{path}.role", "must not be function, which is deprecated. Use tool", ErrorCode.UNSUPPORTED_PARAMETER)
    if role not in ROLES:
        fail(f"{path}.role", f"must be one of {', '.join(ROLES)}", ErrorCode.VALUE_OUT_OF_RANGE)
    message: ChatMessage = {"role": role}
    if role == "assistant":
        _add_assistant_fields(path, value, message)
    else:
        message["content"] = _content(f"{path}.content", value.get("content"), role)
    for name in ("name", "tool_call_id") if role == "tool" else ("name",):
        if (text := _optional_text(path, value, name)) is not None:
            message[name] = text
    return message


def _add_assistant_fields(path: str, value: Mapping[str, Any], message: ChatMessage) -> None:
    for name, advice in _REFUSED.items():
        if value.get(name) is not None:
            fail(f"{path}.{name}", f"is not supported. {advice}", ErrorCode.UNSUPPORTED_PARAMETER)
    calls = _tool_calls(f"{path}.tool_calls", value.get("tool_calls"))
    content, refusal = value.get("content"), _optional_text(path, value, "refusal")
    if content is None and refusal is not None:
        content = refusal
    # Templates test whether the content of a message with calls is null.
    message["content"] = None if content is None and calls else _content(f"{path}.content", content, "assistant")
    for name in ("reasoning", "reasoning_content"):
        if (text := _optional_text(path, value, name)) is not None:
            message["reasoning_content"] = text
    if calls:
        message["tool_calls"] = calls


def _optional_text(path: str, value: Mapping[str, Any], name: str) -> str | None:
    text = value.get(name)
    if text is not None and not isinstance(text, str):
        fail(f"{path}.{name}", "must be a string")
    return text


def _content(path: str, value: Any, role: str) -> str:
    if value is None:
        fail(path, "is required", ErrorCode.MISSING_REQUIRED_PARAMETER)
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        fail(path, "must be a string or a list of parts")
    if not 1 <= len(value) <= MAX_PARTS:
        fail(path, f"must have from 1 to {MAX_PARTS} parts", ErrorCode.VALUE_OUT_OF_RANGE)
    return "\n".join(_part(f"{path}[{index}]", part, role) for index, part in enumerate(value))


def _part(path: str, part: Any, role: str) -> str:
    if not isinstance(part, dict):
        fail(path, "must be an object with a type and a text")
    kind = part.get("type")
    if not isinstance(kind, str):
        fail(f"{path}.type", "must be a string, such as text")
    if kind not in ("text", "refusal") or (kind == "refusal" and role != "assistant"):
        message = f"is {kind[:_MAX_NAME_CHARACTERS]}, which is not supported. This server reads text: send parts of "
        fail(f"{path}.type", message + "type text only", ErrorCode.UNSUPPORTED_PARAMETER)
    text = part.get(kind)
    if not isinstance(text, str):
        fail(f"{path}.{kind}", "must be a string")
    return text


def _tool_calls(path: str, value: Any) -> list[dict[str, Any]]:
    if value is None:
        return []
    if not isinstance(value, list):
        fail(path, "must be a list of tool calls")
    return [_tool_call(f"{path}[{index}]", call) for index, call in enumerate(value)]


def _tool_call(path: str, call: Any) -> dict[str, Any]:
    if not isinstance(call, dict):
        fail(path, "must be an object with an id, a type and a function")
    if call.get("type", "function") != "function":
        message = "must be function: no other tool is supported"
        fail(f"{path}.type", message, ErrorCode.UNSUPPORTED_PARAMETER)
    function = call.get("function")
    if not isinstance(function, dict):
        fail(f"{path}.function", "must be an object with a name and arguments")
    for place, name, text in (("", "id", call.get("id")), (".function", "name", function.get("name"))):
        if not isinstance(text, str):
            fail(f"{path}{place}.{name}", "must be a string")
    arguments = _arguments(f"{path}.function.arguments", function.get("arguments"))
    return {
        "id": call["id"],
        "type": "function",
        "function": {"name": function["name"], "arguments": arguments},
    }


def _arguments(path: str, value: Any) -> dict[str, Any] | str:
    if value is None or isinstance(value, dict):
        return value or {}
    if not isinstance(value, str):
        fail(path, "must be a string that contains a JSON object")
    try:
        arguments = json.loads(value or "{}")  # orjson would round integers beyond 64 bits
    except (ValueError, RecursionError):
        return value
    return arguments if isinstance(arguments, dict) else value


def unknown_keys(document: Mapping[str, Any]) -> Sequence[str]:
    """The paths of keys of messages that are not read, such as "messages[0].weight". Validation refuses wrong types."""
    messages = document.get("messages")
    if not isinstance(messages, list):
        return ()
    unknown = []
    for index, message in enumerate(messages[:MAX_MESSAGES]):
        if isinstance(message, dict) and isinstance(role := message.get("role"), str):
            known = _KEYS.get(role, frozenset())
            if not known or message.keys() <= known:
                continue
            unknown += [f"messages[{index}].{name}"[:_MAX_NAME_CHARACTERS] for name in message if name not in known]
    return unknown


_TEXT = {"type": "string"}
_TEXT_PART = {
    "type": "object",
    "properties": {"type": {"enum": ["text"]}, "text": _TEXT},
    "required": ["type", "text"],
}
_REFUSAL_PART = {
    "type": "object",
    "properties": {"type": {"enum": ["refusal"]}, "refusal": _TEXT},
    "required": ["type", "refusal"],
}
_NULL = {"type": "null"}


def _content_schema(*parts: dict[str, Any], nullable: bool = False) -> dict[str, Any]:
    items = parts[0] if len(parts) == 1 else {"anyOf": [*parts]}
    forms = [_TEXT, {"type": "array", "items": items, "minItems": 1, "maxItems": MAX_PARTS}]
    return {"anyOf": [*forms, _NULL] if nullable else forms}


def _message_schema(role: str | list[str], content: dict[str, Any], **properties: Any) -> dict[str, Any]:
    optional = {name: {"anyOf": [schema, _NULL]} for name, schema in {"name": _TEXT, **properties}.items()}
    required = ["role"] if _NULL in content["anyOf"] else ["role", "content"]
    roles = [role] if isinstance(role, str) else role
    return {
        "type": "object",
        "properties": {"role": {"enum": roles}, "content": content, **optional},
        "required": required,
    }


_FUNCTION_CALL = {
    "type": "object",
    "properties": {"name": _TEXT, "arguments": {"anyOf": [_TEXT, {"type": "object"}]}},
    "required": ["name"],
}
_CALLS = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {"id": _TEXT, "type": {"enum": ["function"]}, "function": _FUNCTION_CALL},
        "required": ["id", "function"],
    },
}
_MESSAGES_SCHEMA = {
    "type": "array",
    "minItems": 1,
    "maxItems": MAX_MESSAGES,
    "items": {
        "anyOf": [
            _message_schema(["developer", "system", "user"], _content_schema(_TEXT_PART)),
            _message_schema(
                "assistant",
                _content_schema(_TEXT_PART, _REFUSAL_PART, nullable=True),
                refusal=_TEXT,
                reasoning_content=_TEXT,
                tool_calls=_CALLS,
            ),
            _message_schema("tool", _content_schema(_TEXT_PART), tool_call_id=_TEXT),
        ]
    },
}

Messages: TypeAlias = Annotated[tuple[ChatMessage, ...], PlainValidator(_messages), WithJsonSchema(_MESSAGES_SCHEMA)]
