"""A guide that can't be followed is refused with its part, the cause, and what to write instead."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_pipeline.guides.compilers.llguidance_compiler import GuideCompiler, validate
from llm_pipeline.guides.masks import GuideError
from llm_pipeline.protocol.messages import Guide, GuideType

OBJECT = {"type": "object", "properties": {"a": {}}}


@pytest.mark.parametrize(
    ("schema", "start", "advice"),
    [
        ({"items": {"pattern": "a(?=b)c"}}, "At /items/pattern: look-ahead", "without them"),
        ({"items": {"pattern": r"(a)\1"}}, "At /items/pattern: back-references", "Repeat"),
        (
            {"items": {"type": "string", "pattern": "a("}},
            "At /items/pattern: the pattern can't be used: a `(`",
            "Close it",
        ),
        ({"properties": {"a/b~c": {"not": {"const": 1}}}}, "At /properties/a~1b~0c/not: not", "allowed instead"),
        ({"contains": {}}, "At /contains: contains", "prefixItems"),
        ({"oneOf": [OBJECT, OBJECT]}, "At /oneOf: a value might match alternatives 0 and 1", "anyOf"),
        ({"oneOf": [{"$ref": "#/$defs/x"}, {}], "$defs": {"x": {"required": 5}}}, "At /oneOf/0/required", "list"),
        (
            {"oneOf": [{"$ref": "#/$defs/x"}], "$defs": {"x": {"$ref": "#/$defs/x"}}},
            "At /oneOf/0: its references",
            "circle",
        ),
        ({"propertyNames": {"pattern": 5}}, "At /propertyNames/pattern", "string"),
        ({"propertyNames": {"pattern": "(("}}, "At /propertyNames/pattern", "regular expression"),
        ({"uniqueItems": True, "items": {"enum": [*range(9)]}}, "At /uniqueItems: the 9 values", "maxItems"),
        ({"$ref": "other.json#/x"}, "At /$ref: `other.json#/x`", "$defs"),
        ({"anyOf": []}, "At /anyOf: anyOf must be", "not empty"),
        ({"x-guidance": {"lenient": True}}, "At /x-guidance: x-guidance", "Remove it"),
        ({"minimum": 10**400}, "At /minimum", "Write"),
        ({"type": "integer", "minimum": -(2**63)}, "At /minimum: `-9223372036854775808`", "-9223372036854774784"),
        ({"type": "integer", "maximum": 2**64 - 1}, "At /maximum: `18446744073709551615`", "9223372036854775807"),
        (
            {
                "properties": {"a": {"minLength": 5, "maxLength": 2, "type": "string"}},
                "required": ["a"],
                "type": "object",
            },
            "At /properties/a: no value can match",
            "Check",
        ),
    ],
)
def test_a_schema_is_refused_with_its_part_and_what_to_write(
    schema: object, start: str, advice: str, compiler: GuideCompiler
) -> None:
    with pytest.raises(GuideError) as caught:
        compiler.compile(Guide(GuideType.JSON_SCHEMA, json.dumps(schema)))
    assert str(caught.value).startswith(start)
    assert advice in str(caught.value)


@pytest.mark.parametrize("kind", [GuideType.REGEX, GuideType.EBNF_GRAMMAR])
@given(
    parts=st.lists(
        st.sampled_from(
            ["start: ", "root ::= ", "(?=", "(", ")", "[", "*", "{3", "\\q", '"a"', "/", "|", "x", "\n", "%", "<|"]
        )
    )
)
@settings(max_examples=200, deadline=None)
def test_a_refused_expression_or_grammar_is_described_in_our_words(
    compiler: GuideCompiler, kind: GuideType, parts: list[str]
) -> None:
    for compile_guide in (compiler.compile, validate):
        try:
            compile_guide(Guide(kind, "".join(parts)))
        except GuideError as error:
            message = str(error)
        else:
            continue
        words = ("NoExtension", "ff_tokens", "regex parse", "lexeme", "Expected", "llguidance", "\n", "no_forcing")
        assert message.endswith(".")
        assert not [word for word in words if word in message]
