"""Cheap checks of a guide, for preprocess: size, form and counts. A guide is compiled elsewhere (guide_process.py).

The time of each check is linear in the guide's length, which is limited first, and none recurses.
"""

from __future__ import annotations

import re
from typing import Any

import orjson

from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.protocol.fields import MAX_GUIDE_CHARACTERS, MAX_GUIDE_RULES
from llm_pipeline.protocol.messages import GUIDE_PARAM, Guide, GuideType

_RULE_HEAD = re.compile(r"^[ \t]*[?!]*[A-Za-z_][\w-]*(?:\[.*?\])?(?:\.\d+)?[ \t]*:", re.MULTILINE)
_NOUNS = {
    GuideType.JSON: "JSON guide",
    GuideType.JSON_SCHEMA: "JSON schema",
    GuideType.REGEX: "regular expression",
    GuideType.EBNF_GRAMMAR: "grammar",
    GuideType.STRUCTURAL_TAG: "structural tag",
}


def check_guide(guide: Guide) -> None:
    """Raises PipelineError (400) if the guide is empty, too long, not JSON where it must be, or has too many rules."""
    text = guide.source or ""
    if len(text) > MAX_GUIDE_CHARACTERS:
        raise bad_guide(f"The {noun_of(guide)} has {len(text)} characters; the limit is {MAX_GUIDE_CHARACTERS}.")
    if not text and guide.type is not GuideType.JSON:
        raise bad_guide(f"The {noun_of(guide)} is empty. Send one, or omit structured output.")
    if guide.type is GuideType.JSON_SCHEMA:
        _check_json_schema(text)
    if guide.type is GuideType.EBNF_GRAMMAR and (count := len(_RULE_HEAD.findall(text))) > MAX_GUIDE_RULES:
        raise bad_guide(f"The grammar has {count} rules; the limit is {MAX_GUIDE_RULES}.")


def bad_guide(message: str) -> PipelineError:
    """The error of a guide that can't be used (400)."""
    return PipelineError(ErrorCode.VALUE_OUT_OF_RANGE, message, param=GUIDE_PARAM)


def noun_of(guide: Guide) -> str:
    """Returns the name of the guide's kind, for messages."""
    return _NOUNS[guide.type]


def _check_json_schema(text: str) -> None:
    try:
        schema = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise bad_guide(f"The JSON schema is not valid JSON (line {error.lineno}, column {error.colno}).") from None
    if not isinstance(schema, dict):
        raise bad_guide("The JSON schema is not an object.")
    if (count := len(_references(schema))) > MAX_GUIDE_RULES:
        raise bad_guide(f"The JSON schema refers to {count} definitions; the limit is {MAX_GUIDE_RULES}.")


def _references(schema: dict[str, Any]) -> set[str]:
    references, left = set(), [schema]
    while left:  # not recursive: a schema may be nested deeper than Python's recursion limit
        part: Any = left.pop()
        if isinstance(part, dict):
            if isinstance(target := part.get("$ref"), str):
                references.add(target)
            left += part.values()
        elif isinstance(part, list):
            left += part
    return references
