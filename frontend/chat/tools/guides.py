"""Guides for calls of functions and for reasoning, as structural tags (llm_pipeline/guides/compilers).

In xgrammar, some parts have no end of their own, such as any text and lists of tags. Only the last part of a sequence
may be of this kind, and of alternatives all or none (cpp/structural_tag.cc at v0.1.32). So an answer in a format of the
client has at most one call in place of the content.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from frontend.chat.parsing.reasoning import ReasoningMarkers
from frontend.chat.tool_fields import Tool
from frontend.chat.tools.formats import ToolFormat
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.protocol.fields import MAX_GUIDE_CHARACTERS
from llm_pipeline.protocol.messages import Guide, GuideType

_ANY_OBJECT = {"type": "object"}
_NO_ARGUMENTS = {"type": "object", "properties": {}, "additionalProperties": False}  # as OpenAI reads no parameters
_OPEN = frozenset(
    {"additionalProperties", "patternProperties", "unevaluatedProperties", "propertyNames", "$ref", "allOf", "anyOf"}
    | {"oneOf", "if", "dependentSchemas", "minProperties"}
)
_NO_JSON = r"[^\s{\[]"  # begins text that is not taken for a call without a marker
_ANY = r"[\s\S]*"
_SPACE = r"\s*"
_TEXT = '{"type":"any_text"}'


@dataclass(frozen=True)
class CallRules:
    """What a guide has to enforce. `tools` are those that may be called, and `strict` names some of them."""

    tool_format: ToolFormat
    tools: Sequence[Tool]
    strict: Collection[str]
    is_required: bool
    only_one: bool


def guide_of_answer(
    rules: CallRules | None, content: Guide | None, markers: ReasoningMarkers | None, *, is_in_reasoning: bool
) -> Guide | None:
    """The guide of a whole answer: reasoning, then calls or content. None if nothing has to be enforced.

    `content` is the guide that the client sent for the content. `is_in_reasoning`: the prompt ends within reasoning,
    which comes before what is guided. Raises PipelineError (400) if they do not go together, or are too long.
    """
    answer = None if rules is None else _answer(rules, content)
    if answer is None and content is not None:
        if markers is None or (content.type is GuideType.EBNF_GRAMMAR and not is_in_reasoning):
            return content
        answer = _of_content(content)
    if answer is None:
        return None
    if markers is not None:
        answer = _after_reasoning(answer, markers, is_in_reasoning)
    source = f'{{"type":"structural_tag","format":{answer}}}'
    if len(source) > MAX_GUIDE_CHARACTERS:
        raise PipelineError(
            ErrorCode.VALUE_OUT_OF_RANGE,
            f"The parameters of all functions together make a guide of {len(source)} characters; "
            f"the limit is {MAX_GUIDE_CHARACTERS}. Send fewer functions, or simpler parameters.",
            param="tools",
        )
    return Guide(GuideType.STRUCTURAL_TAG, source)


def _answer(rules: CallRules, content: Guide | None) -> str | None:
    if rules.is_required:
        return _one_call(rules) if rules.only_one else _calls(rules)
    if content is not None:
        return _one_of(_one_call(rules), _of_content(content))
    if not rules.strict:
        return None
    tool_format = rules.tool_format
    if tool_format.is_list:
        return _one_of(_calls(rules), _regex(_ANY))
    if not tool_format.start and rules.only_one:
        return _one_of(_one_call(rules), _sequence(_regex(_NO_JSON), _regex(_ANY)))
    if not tool_format.start:
        return _one_of(_calls(rules), _sequence(_regex(_NO_JSON), _TEXT))
    tags = ",".join(_tag(rules, tool["function"]) for tool in rules.tools)
    return (
        f'{{"type":"triggered_tags","triggers":[{_json(tool_format.start)}],"tags":[{tags}],'
        f'"stop_after_first":{_json(rules.only_one)}}}'
    )


def _calls(rules: CallRules) -> str:
    """One call or more."""
    tags = ",".join(_tag(rules, tool["function"]) for tool in rules.tools)
    separator = _json(rules.tool_format.separator)
    return _in_list(
        rules, f'{{"type":"tags_with_separator","tags":[{tags}],"separator":{separator},"at_least_one":true}}'
    )


def _one_call(rules: CallRules) -> str:
    return _in_list(rules, _one_of(*(_tag(rules, tool["function"]) for tool in rules.tools)))


def _in_list(rules: CallRules, calls: str) -> str:
    tool_format = rules.tool_format
    if not tool_format.is_list:
        return calls
    return f'{{"type":"tag","begin":{_json(f"{tool_format.start} [")},"content":{calls},"end":"]"}}'


def _tag(rules: CallRules, function: Mapping[str, Any]) -> str:
    tool_format = rules.tool_format
    begin = ("" if tool_format.is_list else tool_format.start) + tool_format.before_arguments(function["name"])
    # With `auto`, only the arguments of strict functions have to follow their schema.
    is_free = not rules.is_required and function["name"] not in rules.strict
    schema = _ANY_OBJECT if is_free else _schema_of(function)
    content = f'{{"type":"json_schema","json_schema":{_json(schema)}}}'
    return f'{{"type":"tag","begin":{_json(begin)},"content":{content},"end":{_json(tool_format.after_arguments)}}}'


def _schema_of(function: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of the arguments. Without a word on other arguments there are none: few functions would take them."""
    parameters = function.get("parameters")
    if not parameters:
        return _NO_ARGUMENTS
    is_closed = "properties" in parameters and _OPEN.isdisjoint(parameters)
    return {"type": "object", **parameters, **({"additionalProperties": False} if is_closed else {})}


def _of_content(content: Guide) -> str:
    if content.type is GuideType.JSON_SCHEMA:
        return f'{{"type":"json_schema","json_schema":{content.source}}}'
    if content.type is GuideType.REGEX:
        return _regex(content.source or "")
    raise PipelineError(
        ErrorCode.UNSUPPORTED_PARAMETER,
        "A grammar is supported neither with tools nor after reasoning. Send a JSON schema or a regular expression.",
        param="structured_outputs",
    )


def _after_reasoning(answer: str, markers: ReasoningMarkers, is_in_reasoning: bool) -> str:
    begin = "" if is_in_reasoning else markers.start
    reasoning = f'{{"type":"tag","begin":{_json(begin)},"content":{_TEXT},"end":{_json(markers.end)}}}'
    after = _sequence(reasoning, _regex(_SPACE), answer)
    return after if is_in_reasoning else _one_of(answer, after)


def _sequence(*elements: str) -> str:
    return f'{{"type":"sequence","elements":[{",".join(elements)}]}}'


def _one_of(*elements: str) -> str:
    return f'{{"type":"or","elements":[{",".join(elements)}]}}'


def _regex(pattern: str) -> str:
    return f'{{"type":"regex","pattern":{_json(pattern)}}}'


def _json(value: Any) -> str:
    try:
        return json.dumps(value, separators=(",", ":"))
    except RecursionError:
        raise PipelineError(
            ErrorCode.VALUE_OUT_OF_RANGE, "The parameters of a function are nested too deeply.", param="tools"
        ) from None
