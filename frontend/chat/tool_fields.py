"""Validates the fields `tools` and `tool_choice`, and other JSON values that a chat passes to the template."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any, TypeAlias

from pydantic import PlainValidator, WithJsonSchema

from frontend.chat.messages import fail
from llm_pipeline.protocol.errors import ErrorCode

Tool: TypeAlias = dict[str, Any]
"""A tool as templates read it: {"type": "function", "function": {"name", "description", "parameters"}}."""

MAX_TOOLS = 128  # as OpenAI
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")  # OpenAI's, and the dot of MCP servers
_FUNCTION_KEYS = ("name", "description", "parameters")
_RESERVED = frozenset(
    {"messages", "tools", "documents", "add_generation_prompt", "continue_final_message", "chat_template", "tokenize"}
)


class ToolUse(str, Enum):
    """Whether the answer may, must or must not call tools."""

    NONE = "none"
    AUTO = "auto"
    REQUIRED = "required"


@dataclass(frozen=True)
class ToolChoice:
    """The field `tool_choice`. With a `name`, `use` is REQUIRED: exactly this function must be called."""

    use: ToolUse
    name: str | None = None


@dataclass(frozen=True)
class Tools:
    """The field `tools`: what templates read, and the names of the functions whose arguments must validate."""

    tools: tuple[Tool, ...] = ()
    strict: frozenset[str] = frozenset()

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the functions."""
        return tuple(tool["function"]["name"] for tool in self.tools)


def _tools(value: Any) -> Tools:
    if not isinstance(value, list):
        fail("", "must be a list of tools")
    if len(value) > MAX_TOOLS:
        fail("", f"must contain at most {MAX_TOOLS} tools", ErrorCode.VALUE_OUT_OF_RANGE)
    tools = tuple(_tool(f"[{index}]", tool) for index, tool in enumerate(value))
    names: set[str] = set()
    for index, tool in enumerate(tools):
        name = tool["function"]["name"]
        if name in names:
            message = "is the name of a tool before it. Names must differ"
            fail(f"[{index}].function.name", message, ErrorCode.VALUE_OUT_OF_RANGE)
        names.add(name)
    strict = frozenset(tool["function"]["name"] for tool in value if tool["function"].get("strict"))
    return Tools(tools, strict)


def _tool(path: str, value: Any) -> Tool:
    if not isinstance(value, dict):
        fail(path, "must be an object with a type and a function")
    if value.get("type") != "function":
        message = "must be function: no other tool is supported"
        fail(f"{path}.type", message, ErrorCode.UNSUPPORTED_PARAMETER)
    function = value.get("function")
    if not isinstance(function, dict):
        fail(f"{path}.function", "must be an object with a name")
    path += ".function"
    name = function.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        message = "must be a string of 1 to 64 ASCII letters, digits, underscores, hyphens and dots"
        fail(f"{path}.name", message, ErrorCode.VALUE_OUT_OF_RANGE if isinstance(name, str) else ErrorCode.INVALID_TYPE)
    for key, kind, noun in (("description", str, "a string"), ("parameters", dict, "an object: a JSON schema")):
        if function.get(key) is not None and not isinstance(function[key], kind):
            fail(f"{path}.{key}", f"must be {noun}")
    if not isinstance(function.get("strict"), bool | None):
        fail(f"{path}.strict", "must be true or false")
    # Templates write what is here: neither nulls nor `strict`, which is for this server.
    return {"type": "function", "function": {k: function[k] for k in _FUNCTION_KEYS if function.get(k) is not None}}


def _tool_choice(value: Any) -> ToolChoice:
    if isinstance(value, str):
        if value not in [use.value for use in ToolUse]:
            fail("", "must be none, auto, required, or an object that names a function", ErrorCode.VALUE_OUT_OF_RANGE)
        return ToolChoice(ToolUse(value))
    if not isinstance(value, dict):
        fail("", "must be a string or an object")
    if value.get("type") != "function":
        fail(".type", "must be function: no other choice is supported", ErrorCode.UNSUPPORTED_PARAMETER)
    function = value.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        fail(".function.name", "must be the name of one of the tools")
    return ToolChoice(ToolUse.REQUIRED, function["name"])


def _documents(value: Any) -> tuple[dict[str, Any], ...]:
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        fail("", "must be a list of objects, such as those with a title and a text")
    return tuple(value)


def _template_kwargs(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        fail("", "must be an object: the variables of the template by name")
    for name in value:
        if name in _RESERVED:
            fail(f".{name}", "must not be set here. It has a field of its own", ErrorCode.UNSUPPORTED_PARAMETER)
    return value


_STRING = {"type": "string"}
_FUNCTION_SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": f"^{_NAME.pattern}$"},
        "description": {"anyOf": [_STRING, {"type": "null"}]},
        "parameters": {"anyOf": [{"type": "object"}, {"type": "null"}]},
        "strict": {"anyOf": [{"type": "boolean"}, {"type": "null"}]},
    },
    "required": ["name"],
}
_TOOLS_SCHEMA = {
    "type": "array",
    "maxItems": MAX_TOOLS,
    "items": {
        "type": "object",
        "properties": {"type": {"enum": ["function"]}, "function": _FUNCTION_SCHEMA},
        "required": ["type", "function"],
    },
}
_NAMED_FUNCTION = {"type": "object", "properties": {"name": _STRING}, "required": ["name"]}
_TOOL_CHOICE_SCHEMA = {
    "anyOf": [
        {"enum": [use.value for use in ToolUse]},
        {
            "type": "object",
            "properties": {"type": {"enum": ["function"]}, "function": _NAMED_FUNCTION},
            "required": ["type", "function"],
        },
    ]
}

ToolList: TypeAlias = Annotated[Tools, PlainValidator(_tools), WithJsonSchema(_TOOLS_SCHEMA)]
ToolChoiceField: TypeAlias = Annotated[ToolChoice, PlainValidator(_tool_choice), WithJsonSchema(_TOOL_CHOICE_SCHEMA)]
Documents: TypeAlias = Annotated[
    tuple[dict[str, Any], ...],
    PlainValidator(_documents),
    WithJsonSchema({"type": "array", "items": {"type": "object"}}),
]
TemplateKwargs: TypeAlias = Annotated[
    dict[str, Any], PlainValidator(_template_kwargs), WithJsonSchema({"type": "object"})
]
