"""oneOf as anyOf, where no value can match two alternatives: by their types, constants, or a property that tells them
apart. Any other oneOf is refused.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from llm_pipeline.guides.schemas.keywords import Path, check, types_of
from llm_pipeline.guides.schemas.references import References
from llm_pipeline.guides.schemas.refusals import SchemaError

_MAX_PAIRS = 32  # of alternatives that are compared one by one
_MAX_DEPTH = 4  # of alternatives within alternatives
_ADVICE = (
    "Give each alternative a required property with a const of its own, or write anyOf if a value may match several."
)


@dataclass(frozen=True)
class _Summary:
    """The values of a schema, at most: those of the types, or, if they are counted, the `values` as JSON."""

    types: frozenset[str]
    values: frozenset[str] | None = None
    required: frozenset[str] = frozenset()
    properties: dict[str, Any] = field(default_factory=dict)
    is_closed: bool = False  # without further properties

    def is_apart_from(self, other: _Summary) -> bool:
        if not _overlap(self.types, other.types):
            return True
        return self.values is not None and other.values is not None and not self.values & other.values


def check_exclusive(schemas: Sequence[Any], references: References, path: Path, discriminator: str | None) -> None:
    """Raises SchemaError if a value might match two of the schemas. `discriminator` is a property that all require."""
    summaries = [_summary(schema, references, (*path, str(n)), _MAX_DEPTH) for n, schema in enumerate(schemas)]
    if _is_told_apart(summaries, references, path, discriminator):
        return
    for first, second in combinations(range(min(len(summaries), _MAX_PAIRS)), 2):
        if not _are_apart(summaries[first], summaries[second], references, path):
            raise SchemaError(path, f"a value might match alternatives {first} and {second} of oneOf. {_ADVICE}")
    if len(summaries) > _MAX_PAIRS:
        raise SchemaError(path, f"oneOf has {len(summaries)} alternatives without a common const. {_ADVICE}")


def _is_told_apart(summaries: list[_Summary], references: References, path: Path, discriminator: str | None) -> bool:
    """Whether all alternatives differ in their constants or one property, in a time linear in their number."""
    if all(summary.values is not None for summary in summaries):
        return _are_disjoint([summary.values or frozenset() for summary in summaries])
    if any(summary.types != {"object"} for summary in summaries):
        return False
    if discriminator is not None:
        names = [discriminator] if all(discriminator in summary.properties for summary in summaries) else []
    else:
        common = frozenset.intersection(*(summary.required for summary in summaries))
        names = [name for name in summaries[0].properties if name in common]
    for name in names:
        values = [
            _summary(summary.properties.get(name, True), references, path, _MAX_DEPTH).values for summary in summaries
        ]
        known = [value for value in values if value is not None]
        if len(known) == len(values) and _are_disjoint(known):
            return True
    return False


def _are_disjoint(sets: list[frozenset[str]]) -> bool:
    return sum(map(len, sets)) == len(frozenset[str]().union(*sets))


def _are_apart(first: _Summary, second: _Summary, references: References, path: Path) -> bool:
    if first.is_apart_from(second):
        return True
    if first.types != {"object"} or second.types != {"object"}:
        return False
    for name in first.required | second.required:
        if (first.is_closed and name not in first.properties) or (second.is_closed and name not in second.properties):
            return True
        summaries = [
            _summary(summary.properties.get(name, True), references, path, _MAX_DEPTH) for summary in (first, second)
        ]
        if summaries[0].is_apart_from(summaries[1]):
            return True
    return False


def _overlap(first: frozenset[str], second: frozenset[str]) -> bool:
    numbers = frozenset({"integer", "number"})
    return bool(first & second) or bool(first & numbers and second & numbers)


def _summary(schema: Any, references: References, path: Path, depth: int) -> _Summary:
    schema = references.resolved(schema, path)
    if schema is False:
        return _Summary(frozenset(), frozenset())
    if not isinstance(schema, dict):
        return _Summary(types_of({}))
    check(schema, path)
    values = _values_of(schema)
    types = types_of(schema)
    if values is not None:
        types = frozenset(_type_of(value) for value in values)
    summary = _Summary(
        types,
        None if values is None else frozenset(map(_as_key, values)),
        frozenset(schema.get("required", ())),
        schema.get("properties", {}),
        schema.get("additionalProperties") is False and "patternProperties" not in schema,
    )
    return _narrowed(summary, schema, references, path, depth)


def _narrowed(summary: _Summary, schema: Any, references: References, path: Path, depth: int) -> _Summary:
    """Returns the summary with the types and values of a union in the schema."""
    for name in ("anyOf", "oneOf"):
        options = schema.get(name)
        if depth and isinstance(options, list) and summary.values is None:
            inner = [_summary(option, references, path, depth - 1) for option in options]
            types = frozenset[str]().union(*(option.types for option in inner))
            values = None
            if all(option.values is not None for option in inner):
                values = frozenset[str]().union(*(option.values or () for option in inner))
            kept = summary.types & types
            if "number" in summary.types:
                kept |= types & {"integer"}
            if "number" in types:
                kept |= summary.types & {"integer"}
            summary = _Summary(kept, values, summary.required, summary.properties, summary.is_closed)
    return summary


def _values_of(schema: Any) -> list[Any] | None:
    if "const" in schema:
        return [schema["const"]]
    if schema.get("type") == "null":
        return [None]
    if schema.get("type") == "boolean" and "enum" not in schema:
        return [False, True]
    values = schema.get("enum")
    return values if isinstance(values, list) else None


def _type_of(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    return "string" if isinstance(value, str) else "array" if isinstance(value, list) else "object"


def _as_key(value: Any) -> str:
    """Returns the same text for equal values: 1 and 1.0 are equal."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return json.dumps(value, sort_keys=True)
