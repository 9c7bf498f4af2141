"""Fifty JSON schemas with short instances, for structured output on the real model and for random walks."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]


def an_object(properties: dict[str, Schema], *, required: list[str] | None = None) -> Schema:
    names = list(properties) if required is None else required
    return {"type": "object", "properties": properties, "required": names, "additionalProperties": False}


def an_array(items: Schema, low: int, high: int) -> Schema:
    return {"type": "array", "items": items, "minItems": low, "maxItems": high}


SHORT = {"type": "string", "maxLength": 8}
DIGIT = {"type": "integer", "minimum": 0, "maximum": 9}
AGE = {"type": "integer", "minimum": 0, "maximum": 120}
YES = {"type": "boolean"}
COLOUR = {"enum": ["red", "green", "blue"]}

SCALARS: list[Schema] = [
    {"type": "null"},
    {"type": "boolean"},
    {"const": "fixed"},
    {"const": 42},
    {"const": None},
    {"enum": ["a", "b", "c"]},
    {"enum": [1, "two", None, True]},
    {"enum": ['quote " and \\ slash', "tab\tand\nline", "ünïcödé 日本 😀"]},
    DIGIT,
    AGE,
    {"type": "integer", "minimum": -5, "maximum": 5},
    {"type": "integer", "minimum": 100, "maximum": 999, "multipleOf": 5},
    {"type": "number", "minimum": 0, "maximum": 1, "multipleOf": 0.25},
    SHORT,
    {"type": "string", "minLength": 3, "maxLength": 3},
    {"type": "string", "pattern": "^[a-f0-9]{6}$"},
    {"type": "string", "pattern": "^(yes|no|maybe)$"},
    {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"},
    {"type": "string", "format": "date"},
    {"type": "string", "format": "uuid"},
]
ARRAYS: list[Schema] = [
    an_array(DIGIT, 0, 3),
    an_array(DIGIT, 3, 3),
    an_array(YES, 1, 4),
    an_array(SHORT, 1, 2),
    an_array(COLOUR, 2, 5),
    an_array(an_array(DIGIT, 1, 2), 1, 2),
    an_array({"type": ["integer", "null"], "minimum": 0, "maximum": 9}, 2, 2),
    an_array({"anyOf": [YES, DIGIT]}, 2, 3),
    {"type": "array", "prefixItems": [DIGIT, YES], "items": False, "minItems": 2},
    an_array(an_object({"x": DIGIT, "y": DIGIT}), 1, 2),
]
OBJECTS: list[Schema] = [
    an_object({}),
    an_object({"name": SHORT}),
    an_object({"name": SHORT, "age": AGE}),
    an_object({"a": DIGIT, "b": DIGIT, "c": DIGIT}, required=["b"]),
    an_object({"optional": YES}, required=[]),
    an_object({"colour": COLOUR, "count": DIGIT}),
    an_object({"items": an_array(DIGIT, 1, 3)}),
    an_object({"point": an_object({"x": DIGIT, "y": DIGIT})}),
    an_object({"deep": an_object({"er": an_object({"est": YES})})}),
    an_object({"key with spaces": YES, "ключ": DIGIT, "\u00e9": YES}),
    an_object({"either": {"anyOf": [{"type": "null"}, an_object({"x": DIGIT})]}}),
    an_object({"id": {"type": "string", "pattern": "^[a-z]{4}$"}, "ok": YES}),
    an_object({"when": {"type": "string", "format": "date"}, "who": SHORT}),
    an_object({"tags": an_array(COLOUR, 0, 2), "n": {"const": 7}}),
    {**an_object({"x": {"$ref": "#/$defs/digit"}}), "$defs": {"digit": DIGIT}},
    {**an_object({"pair": an_array({"$ref": "#/$defs/yes"}, 2, 2)}), "$defs": {"yes": YES}},
    {"anyOf": [an_object({"kind": {"const": "a"}, "x": DIGIT}), an_object({"kind": {"const": "b"}, "y": YES})]},
    {"allOf": [{"type": "integer", "minimum": 3}, {"type": "integer", "maximum": 7}]},
    {"type": "object", "additionalProperties": DIGIT, "maxProperties": 0},
    an_object({"score": {"type": "number", "minimum": 0, "maximum": 1, "multipleOf": 0.5}, "passed": YES}),
]
SCHEMAS = [*SCALARS, *ARRAYS, *OBJECTS]
