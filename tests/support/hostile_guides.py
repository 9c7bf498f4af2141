"""Guides that cost as much as their sender can make them cost: one family for each kind that has been seen to work."""

from __future__ import annotations

import json
from collections.abc import Mapping

from llm_pipeline.protocol.fields import MAX_GUIDE_CHARACTERS
from llm_pipeline.protocol.messages import Guide, GuideType


def schema(value: object) -> Guide:
    return Guide(GuideType.JSON_SCHEMA, json.dumps(value, separators=(",", ":")))


def regex(pattern: str) -> Guide:
    return Guide(GuideType.REGEX, pattern)


def grammar(text: str) -> Guide:
    return Guide(GuideType.EBNF_GRAMMAR, text)


# --- Long chains of rules: llguidance recurses once for each reference ------------------------------------------------


def lark_chain(length: int) -> Guide:
    rules = "".join(f"a{number}: a{number + 1}\n" for number in range(length))
    return grammar(f'start: a0\n{rules}a{length}: "x"\n')


def gbnf_chain(length: int) -> Guide:
    rules = "".join(f"a{number} ::= a{number + 1}\n" for number in range(length))
    return grammar(f'root ::= a0\n{rules}a{length} ::= "x"\n')


def schema_chain(length: int) -> Guide:
    definitions: dict[str, object] = {f"d{number}": {"$ref": f"#/$defs/d{number + 1}"} for number in range(length)}
    definitions[f"d{length}"] = {"type": "integer"}
    return schema({"$ref": "#/$defs/d0", "$defs": definitions})


# --- One of each kind ------------------------------------------------------------------------------------------------


def multiple_of(*values: int) -> Guide:
    return schema({"type": "object", "properties": {f"p{v}": {"type": "integer", "multipleOf": v} for v in values}})


def all_of_multiples(*values: int) -> Guide:
    return schema({"allOf": [{"type": "integer", "multipleOf": value} for value in values]})


def all_of_patterns(count: int) -> Guide:
    """Their intersection has states for every pair, triple, ... of positions."""
    patterns = [{"type": "string", "pattern": f"[ab]*a[ab]{{{12 + number}}}"} for number in range(count)]
    return schema({"allOf": patterns})


def repeats_of_repeats(count: int, depth: int) -> Guide:
    pattern = "a"
    for _ in range(depth):
        pattern = f"({pattern}{{1,{count}}})"
    return regex(pattern)


def nested_arrays(count: int, depth: int) -> Guide:
    value: object = {"type": "integer"}
    for _ in range(depth):
        value = {"type": "array", "items": value, "minItems": count, "maxItems": 2 * count}
    return schema(value)


def left_recursive_alternatives(count: int) -> Guide:
    names = " | ".join(f"e e e{number}" for number in range(count))
    return grammar(f"start: e\ne: e e | {names} | /[a-z]+/\n" + "".join(f'e{n}: "{n}" | e\n' for n in range(count)))


def union_of_objects(count: int) -> Guide:
    objects = [
        {"type": "object", "properties": {f"k{n}": {"type": "string"}, "x": {"type": "integer"}}, "required": ["x"]}
        for n in range(count)
    ]
    return schema({"anyOf": objects})


def properties_with_patterns(count: int) -> Guide:
    properties = {f"p{n}": {"type": "string", "pattern": f"^x{n % 7}.*y$"} for n in range(count)}
    return schema({"type": "object", "properties": properties})


def pattern_properties(count: int) -> Guide:
    return schema({"type": "object", "patternProperties": {f"^.*a.{{{n % 60}}}b$": {} for n in range(count)}})


def nested_schema(depth: int) -> Guide:
    return Guide(GuideType.JSON_SCHEMA, '{"items":' * depth + "{}" + "}" * depth)


def filled(start: str, unit: str, end: str, kind: GuideType) -> Guide:
    """A guide of the largest size."""
    count = (MAX_GUIDE_CHARACTERS - len(start) - len(end)) // len(unit)
    return Guide(kind, start + unit * count + end)


HOSTILE: Mapping[str, Guide] = {
    "multipleOf a large number": multiple_of(1_000_003),
    "multipleOf a larger number": multiple_of(99_999_989),
    "multipleOf several at once": multiple_of(100_003, 100_019, 100_043, 100_049),
    "multipleOf under allOf": all_of_multiples(1_009, 1_013, 1_019),
    "patterns under allOf": all_of_patterns(6),
    "repeats of repeats": repeats_of_repeats(1000, 3),
    "repeats of repeats of repeats": repeats_of_repeats(60, 6),
    "arrays of arrays": nested_arrays(50, 6),
    "alternatives behind left recursion": left_recursive_alternatives(250),
    "union of objects": union_of_objects(500),
    "properties with patterns": properties_with_patterns(1200),
    "pattern properties": pattern_properties(1500),
    "chain of $ref": schema_chain(500),
    "chain of lark rules": lark_chain(500),
    "chain of gbnf rules": gbnf_chain(500),
    "nesting": nested_schema(500),
    "64 KiB of nesting": filled('{"items":' * 250, " ", "{}" + "}" * 250, GuideType.JSON_SCHEMA),
    "64 KiB of parentheses": Guide(GuideType.REGEX, "(" * (1 << 15) + ")" * (1 << 15)),
    "64 KiB of alternatives": filled("a", "|a", "", GuideType.REGEX),
    "64 KiB of a repeated class": filled("", r"\w?", "", GuideType.REGEX),
    "64 KiB of enum": schema({"enum": [f"{n:09}" for n in range(5400)]}),
    "64 KiB of grammar": filled("start: ", '"a"? ', "\n", GuideType.EBNF_GRAMMAR),
    "64 KiB of literal": filled('start: "', "a", '"\n', GuideType.EBNF_GRAMMAR),
}
