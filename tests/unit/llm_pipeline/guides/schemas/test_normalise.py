"""Everyday schemas are followed: every text under one is valid, and the texts that must be possible are."""

from __future__ import annotations

import json
import time
from typing import Any

import jsonschema
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_pipeline.guides.compilers.llguidance_compiler import GuideCompiler
from llm_pipeline.guides.masks import GuideError
from llm_pipeline.guides.schemas.keywords import FOLLOWED as FOLLOWED_KEYWORDS
from llm_pipeline.guides.schemas.keywords import UNSUPPORTED
from llm_pipeline.guides.schemas.normalise import normalised, parse
from llm_pipeline.protocol.messages import Guide, GuideType
from tests.support.random_walks import random_walk

DEFINITIONS = {
    "text": {"type": "string", "maxLength": 4},
    "count": {"type": "integer", "minimum": 0, "maximum": 99},
    "cat": {"type": "object", "properties": {"kind": {"const": "cat"}}, "required": ["kind"]},
    "dog": {"type": "object", "properties": {"kind": {"const": "dog"}}, "required": ["kind"]},
    "tree": {
        "type": "object",
        "properties": {"left": {"anyOf": [{"$ref": "#/$defs/tree"}, {"type": "null"}]}},
        "required": ["left"],
        "additionalProperties": False,
    },
    "colour": {"enum": ["red", "green", "blue"]},
}

FOLLOWED: dict[str, tuple[dict[str, Any], list[Any], list[Any]]] = {
    "oneOf over types": ({"oneOf": [{"$ref": "#/$defs/text"}, {"$ref": "#/$defs/count"}]}, ["ab", 7], [100, True]),
    "oneOf over a discriminator": (
        {"oneOf": [{"$ref": "#/$defs/cat"}, {"$ref": "#/$defs/dog"}]},
        [{"kind": "cat"}, {"kind": "dog"}],
        [{"kind": "cow"}, {}],
    ),
    "oneOf over constants": ({"oneOf": [{"const": 1, "title": "one"}, {"const": "1"}]}, [1, "1"], [2]),
    "oneOf with anyOf beside it": (
        {"oneOf": [{"const": 1}, {"const": 2}], "anyOf": [{"const": 2}, {"const": 3}]},
        [2],
        [1, 3],
    ),
    "unknown format": ({"type": "string", "format": "file-path", "maxLength": 3}, ["a/b"], [1]),
    "format of numbers": ({"type": "integer", "format": "int32"}, [5], ["a"]),
    "uniqueItems on an enum": (
        {"type": "array", "items": {"$ref": "#/$defs/colour"}, "uniqueItems": True},
        [[], ["blue", "red"]],
        [["red", "red"]],
    ),
    "uniqueItems or null": (
        {"type": ["array", "null"], "items": {"type": "boolean"}, "uniqueItems": True, "minItems": 1},
        [[True], None, [False, True]],
        [[], [True, True]],
    ),
    "propertyNames with an enum": (
        {"type": "object", "propertyNames": {"$ref": "#/$defs/colour"}, "additionalProperties": {"type": "boolean"}},
        [{}, {"red": True, "blue": False}],
        [{"pink": True}, {"red": 1}],
    ),
    "propertyNames with a pattern": (
        {"type": "object", "propertyNames": {"pattern": "^[ab]$"}, "additionalProperties": {"const": 1}},
        [{}, {"a": 1}, {"b": 1}],
        [{"c": 1}],
    ),
    "propertyNames with a format": (
        {"type": "object", "propertyNames": {"format": "date"}, "additionalProperties": {"const": 1}},
        [{"2026-02-28": 1}],
        [{"2026-02-30": 1}, {"x": 1}],
    ),
    "propertyNames with a length": (
        {"type": "object", "propertyNames": {"minLength": 2, "maxLength": 3}, "additionalProperties": {"const": 1}},
        [{"ab": 1}],
        [{"a": 1}, {"abcd": 1}],
    ),
    "a recursive definition": ({"$ref": "#/$defs/tree"}, [{"left": {"left": None}}], [{"left": {}}]),
    "a reference to the root": (
        {"type": "array", "items": {"$ref": "#"}, "maxItems": 1},
        [[], [[[]]]],
        [[1]],
    ),
    "an anchor": (
        {"$ref": "#here", "$defs": {"x": {"$anchor": "here", "const": 5}}},
        [5],
        [6],
    ),
    "definitions of draft 7": ({"$ref": "#/definitions/a~1b", "definitions": {"a/b": {"const": 5}}}, [5], [6]),
    "unevaluatedProperties": (
        {"type": "object", "properties": {"a": {"const": 1}}, "unevaluatedProperties": False},
        [{}, {"a": 1}],
        [{"b": 1}],
    ),
    "look-ahead of Decimal": (
        {"type": "string", "pattern": r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$"},
        ["1.5", "-.5", "+7"],
        ["-", ".", "", "a"],
    ),
    "look-ahead of passwords": (
        {"type": "string", "pattern": r"^(?=.*[A-Z])(?=.*\d)[A-Za-z\d]{3,5}$"},
        ["Ab1", "11Z"],
        ["ab1", "ABC"],
    ),
    "look-ahead of zod's e-mail": (
        {
            "type": "string",
            "pattern": r"^(?!\.)(?!.*\.\.)([A-Za-z0-9_'+\-\.]*)[A-Za-z0-9_+-]@"
            r"([A-Za-z0-9][A-Za-z0-9\-]*\.)+[A-Za-z]{2,}$",
        },
        ["a.b@c.de"],
        [".a@c.de", "a..b@c.de"],
    ),
    "zod's never": ({"type": "object", "properties": {"a": {"not": {}}, "b": {"const": 1}}}, [{"b": 1}], [{"a": 1}]),
}


def guide_of(schema: dict[str, Any]) -> Guide:
    return Guide(GuideType.JSON_SCHEMA, json.dumps({"$defs": DEFINITIONS, **schema}))


def allows(compiler: GuideCompiler, library: tokenizers.Tokenizer, guide: Guide, text: str) -> bool:
    matcher = compiler.compile(guide)
    try:
        matcher.advance(library.encode(text, add_special_tokens=False).ids)
        (row,) = matcher.masks()
    except GuideError:
        return False
    end = library.token_to_id("<|end|>")
    assert end is not None
    return bool(row[end // 8] >> end % 8 & 1)


def refusal_of(compiler: GuideCompiler, guide: Guide) -> str | None:
    """Returns the message of a guide that is refused."""
    try:
        compiler.compile(guide)
    except GuideError as error:
        return str(error)
    return None


@pytest.mark.parametrize("name", FOLLOWED)
def test_an_everyday_schema_is_followed(name: str, compiler: GuideCompiler, library: tokenizers.Tokenizer) -> None:
    schema, possible, impossible = FOLLOWED[name]
    guide = guide_of(schema)
    for value in possible:
        assert allows(compiler, library, guide, json.dumps(value)), value
    for value in impossible:
        assert not allows(compiler, library, guide, json.dumps(value)), value


@pytest.mark.parametrize("name", FOLLOWED)
def test_every_text_under_an_everyday_schema_is_valid(
    name: str, compiler: GuideCompiler, library: tokenizers.Tokenizer
) -> None:
    schema = {"$defs": DEFINITIONS, **FOLLOWED[name][0]}
    end = library.token_to_id("<|end|>")
    assert end is not None
    for seed in range(10):
        value = json.loads(random_walk(compiler, library, guide_of(schema), seed, end))
        jsonschema.Draft202012Validator(schema).validate(value)


# --- Integers --------------------------------------------------------------------------------------------------------

EDGES = [
    sign * (base + offset)
    for base in (2**53, 2**60, 2**62, 2**63, 2**64)
    for offset in (-1025, -1, 0, 1, 2, 3, 1025)
    for sign in (1, -1)
]


@pytest.mark.parametrize("value", EDGES)
@pytest.mark.parametrize("keyword", ["const", "enum"])
def test_an_integer_is_followed_exactly_or_refused_by_name(
    keyword: str, value: int, compiler: GuideCompiler, library: tokenizers.Tokenizer
) -> None:
    guide = guide_of({keyword: [value, 1] if keyword == "enum" else value})
    if (refusal := refusal_of(compiler, guide)) is not None:
        assert f"At /{keyword}" in refusal
        assert str(value) in refusal
        return
    assert allows(compiler, library, guide, str(value))
    assert not any(allows(compiler, library, guide, str(value + step)) for step in (-2, -1, 1, 2))


@pytest.mark.parametrize("value", EDGES)
@pytest.mark.parametrize("keyword", ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"])
def test_a_bound_is_followed_exactly_or_refused_by_name(
    keyword: str, value: int, compiler: GuideCompiler, library: tokenizers.Tokenizer
) -> None:
    schema = {"type": "integer", keyword: value}
    guide = guide_of(schema)
    if (refusal := refusal_of(compiler, guide)) is not None:
        assert refusal.startswith(("At /minimum", "At /maximum"))  # an exclusive bound is made inclusive
        return
    for step in (-2, -1, 0, 1, 2):
        is_valid = jsonschema.Draft202012Validator(schema).is_valid(value + step)
        assert allows(compiler, library, guide, str(value + step)) == is_valid, step


def test_ordinary_bounds_of_int64_are_followed_up_to_its_last_value(compiler: GuideCompiler) -> None:
    compiler.compile(guide_of({"type": "integer", "minimum": 0, "maximum": 2**63 - 1}))
    compiler.compile(guide_of({"type": "integer", "minimum": -(2**53) + 1, "maximum": 2**53 - 1}))


# --- Costs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "schema",
    [
        {"oneOf": [{"properties": {"k": {"const": n}}, "required": ["k"], "type": "object"} for n in range(1000)]},
        {"propertyNames": {"enum": [f"n{n}" for n in range(2000)]}, "additionalProperties": {"enum": ["x" * 9] * 2000}},
        {"uniqueItems": True, "items": {"enum": list(range(9000))}, "maxItems": 1},
        {
            "anyOf": [{"$ref": f"#/$defs/d{n}"} for n in range(1000)],
            "$defs": {f"d{n}": {"const": n} for n in range(1000)},
        },
        {"pattern": "^" + "(?=a)" * 5000 + "b$"},
    ],
    ids=lambda schema: next(iter(schema)),
)
def test_a_large_schema_is_rewritten_in_a_time_and_size_linear_in_its_size(schema: dict[str, Any]) -> None:
    text = json.dumps(schema)
    started = time.process_time()
    try:
        rewritten = normalised(parse(text)).document
    except GuideError:
        rewritten = {}
    assert time.process_time() - started < 1
    assert len(json.dumps(rewritten)) < 3 * len(text) + 1000


# --- Refusals --------------------------------------------------------------------------------------------------------

LIBRARYS_WORDS = (
    "NoExtension",
    "ff_tokens",
    "coerce",
    "regex parse",
    "lexer",
    "Lexer",
    "lark",
    "llguidance",
    "Schema::",
)

KEYWORDS = [*FOLLOWED_KEYWORDS, *UNSUPPORTED, "discriminator", "propertyName", "$defs", "$anchor", "$id"]
PATTERNS = st.lists(
    st.sampled_from(["(?=", "(?!", "(?<=", "(", ")", "[", "]", "*", "{2", "}", "a", "\\", "1", "^", "$", "|"])
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | PATTERNS.map("".join)
    | st.sampled_from(["string", "object", "array", "#", "#/$defs/type", "#/x"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYWORDS), inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(st.sampled_from(KEYWORDS), VALUES, max_size=4))
@settings(max_examples=400, deadline=None)
def test_a_refused_schema_names_its_part_in_our_words(compiler: GuideCompiler, schema: dict[str, Any]) -> None:
    message = refusal_of(compiler, Guide(GuideType.JSON_SCHEMA, json.dumps(schema)))
    if message is not None:
        assert message.startswith(("At /", "At ...", "At the root"))
        assert message.endswith(".")
        assert message.count(". ") >= 1 or " must be " in message
        assert not [word for word in LIBRARYS_WORDS if word in message]
        assert "\n" not in message


@given(PATTERNS.map("".join))
@settings(max_examples=300, deadline=None)
def test_a_refused_pattern_names_its_part_in_our_words(compiler: GuideCompiler, pattern: str) -> None:
    guide = Guide(GuideType.JSON_SCHEMA, json.dumps({"items": {"type": "string", "pattern": pattern}}))
    message = refusal_of(compiler, guide)
    if message is not None:
        assert message.startswith("At /items")
        assert not [word for word in LIBRARYS_WORDS if word in message]
