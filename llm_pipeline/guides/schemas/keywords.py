"""The keywords of JSON Schema: which are followed, where schemas stand in them, and the types of their values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import Enum
from typing import Any, TypeAlias

from llm_pipeline.guides.schemas.refusals import SchemaError, quoted

Schema: TypeAlias = dict[str, Any]
Path: TypeAlias = tuple[str, ...]


class Rewritten(Schema):
    """A schema of the new document, in place of one of the client's."""


TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")


class Form(Enum):
    """The form of a keyword's value."""

    SCHEMA = "a schema: an object, true or false"
    SCHEMAS = "a list of schemas that is not empty"
    SCHEMA_OR_SCHEMAS = "a schema or a list of schemas"
    NAMED_SCHEMAS = "an object of schemas"
    COUNT = "an integer from 0 to 2147483647"
    NUMBER = "a number"
    LIMIT = "a number, or a boolean in draft 4"
    STRING = "a string"
    NAMES = "a list of strings"
    VALUES = "a list of values that is not empty"
    TYPES = f"one of {', '.join(TYPES)}, or a list of them"
    BOOLEAN = "true or false"
    ANY = "any value"


FOLLOWED: Mapping[str, Form] = {
    "type": Form.TYPES,
    "const": Form.ANY,
    "enum": Form.VALUES,
    "$ref": Form.STRING,
    "allOf": Form.SCHEMAS,
    "anyOf": Form.SCHEMAS,
    "oneOf": Form.SCHEMAS,
    "items": Form.SCHEMA_OR_SCHEMAS,
    "additionalItems": Form.SCHEMA,
    "prefixItems": Form.SCHEMAS,
    "minItems": Form.COUNT,
    "maxItems": Form.COUNT,
    "uniqueItems": Form.BOOLEAN,
    "properties": Form.NAMED_SCHEMAS,
    "additionalProperties": Form.SCHEMA,
    "patternProperties": Form.NAMED_SCHEMAS,
    "propertyNames": Form.SCHEMA,
    "required": Form.NAMES,
    "minProperties": Form.COUNT,
    "maxProperties": Form.COUNT,
    "minLength": Form.COUNT,
    "maxLength": Form.COUNT,
    "pattern": Form.STRING,
    "format": Form.STRING,
    "minimum": Form.NUMBER,
    "maximum": Form.NUMBER,
    "exclusiveMinimum": Form.LIMIT,
    "exclusiveMaximum": Form.LIMIT,
    "multipleOf": Form.NUMBER,
}

# Each with what to write instead.
UNSUPPORTED: Mapping[str, str] = {
    "not": "Describe the values that are allowed instead.",
    "if": "Write the cases as anyOf, each with all of its keywords.",
    "then": "Write the cases as anyOf, each with all of its keywords.",
    "else": "Write the cases as anyOf, each with all of its keywords.",
    "contains": "Write prefixItems for the items that must be there.",
    "minContains": "Write prefixItems for the items that must be there.",
    "maxContains": "Write prefixItems for the items that must be there.",
    "dependentRequired": "Write the cases as anyOf, each with its required properties.",
    "dependentSchemas": "Write the cases as anyOf, each with all of its keywords.",
    "dependencies": "Write the cases as anyOf, each with all of its keywords.",
    "unevaluatedProperties": "Write additionalProperties in each alternative.",
    "unevaluatedItems": "Write items, or additionalItems, in each alternative.",
    "$dynamicRef": "Write $ref.",
    "$recursiveRef": "Write $ref.",
    "x-guidance": "Remove it.",
}
# Values that demand nothing.
_NO_OP: Mapping[str, tuple[Any, ...]] = {
    "if": ({}, True),
    "then": ({}, True),
    "else": ({}, True),
    "dependentRequired": ({},),
    "dependentSchemas": ({},),
    "dependencies": ({},),
    "unevaluatedProperties": ({}, True),
    "unevaluatedItems": ({}, True),
    "x-guidance": ({},),
}


def check(schema: Schema, path: Path) -> None:
    """Raises SchemaError for a keyword that is not supported, or whose value has the wrong form.

    Keywords that the standard does not know are annotations, and ignored.
    """
    for name, value in schema.items():
        form = FOLLOWED.get(name)
        if form is not None:
            if not _has_form(value, form):
                raise SchemaError((*path, name), f"{name} must be {form.value}.")
        elif name in UNSUPPORTED and value not in _NO_OP.get(name, ()):
            raise SchemaError((*path, name), f"{name} is not supported. {UNSUPPORTED[name]}")
    types = schema.get("type", [])
    for kind in [types] if isinstance(types, str) else types:
        if kind not in TYPES:
            raise SchemaError((*path, "type"), f"{quoted(kind)} is not a type. Write {Form.TYPES.value}.")


def types_of(schema: Schema) -> frozenset[str]:
    """Returns the types that `type` allows: all without it."""
    types = schema.get("type", TYPES)
    return frozenset([types] if isinstance(types, str) else types)


def children_of(schema: Schema) -> list[tuple[Path, Any, int | str, Any]]:
    """Returns the schemas directly in a schema: their path from here, the container, the key in it, and the schema."""
    children: list[tuple[Path, Any, int | str, Any]] = []
    for name, value in schema.items():
        form = FOLLOWED.get(name)
        if form is Form.SCHEMA or (form is Form.SCHEMA_OR_SCHEMAS and not isinstance(value, list)):
            children.append(((name,), schema, name, value))
        elif form in (Form.SCHEMAS, Form.SCHEMA_OR_SCHEMAS):
            children += [((name, str(index)), value, index, child) for index, child in enumerate(value)]
        elif form is Form.NAMED_SCHEMAS:
            children += [((name, key), value, key, child) for key, child in value.items()]
    return children


def paths_of(document: Schema) -> dict[int, Path]:
    """Returns the paths of all schemas in a document, by their `id`."""
    paths: dict[int, Path] = {id(document): ()}
    left: list[tuple[Path, Any]] = [((), document)]
    while left:
        path, schema = left.pop()
        for steps, _, _, child in children_of(schema):
            if isinstance(child, dict):
                paths[id(child)] = (*path, *steps)
                left.append(((*path, *steps), child))
    return paths


def _has_form(value: Any, form: Form) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    is_number = is_number and not (isinstance(value, float) and not math.isfinite(value))
    if form is Form.ANY:
        return True
    if form is Form.SCHEMA:
        return isinstance(value, dict | bool)
    if form is Form.SCHEMAS:
        return isinstance(value, list) and len(value) > 0
    if form is Form.SCHEMA_OR_SCHEMAS:
        return isinstance(value, dict | bool | list)
    if form is Form.NAMED_SCHEMAS:
        return isinstance(value, dict)
    if form is Form.COUNT:
        return is_number and 0 <= value < 2**31 and value == int(value)
    if form is Form.NUMBER:
        return is_number
    if form is Form.LIMIT:
        return is_number or isinstance(value, bool)
    if form is Form.STRING:
        return isinstance(value, str)
    if form is Form.NAMES:
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    if form is Form.TYPES:
        return isinstance(value, str) or (isinstance(value, list) and all(isinstance(item, str) for item in value))
    if form is Form.VALUES:
        return isinstance(value, list) and len(value) > 0
    return isinstance(value, bool)
