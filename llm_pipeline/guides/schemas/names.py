"""propertyNames, as properties or patternProperties."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeAlias

from llm_pipeline.guides.schemas.formats import pattern_of
from llm_pipeline.guides.schemas.keywords import Path, Schema, check
from llm_pipeline.guides.schemas.references import References
from llm_pipeline.guides.schemas.refusals import SchemaError

_FOLLOWED = frozenset({"type", "const", "enum", "pattern", "format", "minLength", "maxLength"})
_ADVICE = "Write propertyNames with enum, pattern, minLength and maxLength, or a format that is a pattern."
_BESIDE_PATTERNS = "propertyNames beside patternProperties is not supported. Write the names there."
Share: TypeAlias = Callable[[Path, Schema], Schema]


def with_allowed_names(schema: Schema, references: References, path: Path, share: Share) -> Schema:
    """Returns a schema without propertyNames. `share` makes a reference of a schema that is repeated.

    Raises SchemaError for names that can't be followed.
    """
    here = (*path, "propertyNames")
    names = references.resolved(schema.pop("propertyNames"), here)
    if names is False:
        names = {"enum": []}
    if not isinstance(names, dict):
        return schema
    check(names, here)
    if "type" in names and names["type"] != "string":
        raise SchemaError(here, f"names are strings. {_ADVICE}")
    values = [names["const"]] if "const" in names else names.get("enum")
    if isinstance(values, list):
        return _with_names(schema, [value for value in values if isinstance(value, str)], path, share)
    pattern = _pattern_of(names, here)
    return schema if pattern is None else _with_pattern(schema, pattern, here)


def _with_names(schema: Schema, names: list[str], path: Path, share: Share) -> Schema:
    if schema.get("patternProperties"):
        raise SchemaError((*path, "propertyNames"), _BESIDE_PATTERNS)
    others = schema.get("additionalProperties", True)
    if isinstance(others, dict):
        others = share((*path, "additionalProperties"), others)
    before = schema.get("properties", {})
    allowed = frozenset(names)
    properties = {name: value if name in allowed else False for name, value in before.items()}
    if others is not False:
        properties |= {name: others for name in names if name not in before}
    return {**schema, "properties": properties, "additionalProperties": False}


def _with_pattern(schema: Schema, pattern: str, path: Path) -> Schema:
    if schema.get("patternProperties"):
        raise SchemaError(path, _BESIDE_PATTERNS)
    others = schema.get("additionalProperties", True)
    try:
        allows = re.compile(pattern).search
        properties = {name: value if allows(name) else False for name, value in schema.get("properties", {}).items()}
    except re.error:
        raise SchemaError(
            (*path, "pattern"), "this is not a regular expression. Write `\\` before special characters."
        ) from None
    rewritten = {**schema, "patternProperties": {pattern: others}, "additionalProperties": False}
    return {**rewritten, "properties": properties} if properties else rewritten


def _pattern_of(names: Schema, path: Path) -> str | None:
    """Returns the pattern of names; None if all are allowed."""
    if unknown := [name for name in names if name in {"anyOf", "oneOf", "allOf", "not"}]:
        raise SchemaError((*path, unknown[0]), f"{unknown[0]} is not supported for names. {_ADVICE}")
    patterns = []
    if "pattern" in names:
        patterns.append(names["pattern"])
    if (pattern := pattern_of(names.get("format", ""))) is not None:
        patterns.append(pattern)
    if "minLength" in names or "maxLength" in names:
        low, high = int(names.get("minLength", 0)), names.get("maxLength")
        patterns.append(f"^(?s:.{{{low},{'' if high is None else int(high)}}})$")
    if len(patterns) > 1:
        raise SchemaError(path, f"pattern, format and lengths of names can't be combined. {_ADVICE}")
    return patterns[0] if patterns else None
