"""Structural tags: what llguidance's grammar allows, and which tags are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from llm_pipeline.guides.compilers.llguidance_compiler import GuideCompiler, validate
from llm_pipeline.guides.masks import GuideError
from llm_pipeline.protocol.messages import Guide, GuideType
from tests.support.guide_walks import allowed_by

_SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}


def tag(name: str, schema: Any = _SCHEMA) -> dict[str, Any]:
    content = {"type": "json_schema", "json_schema": schema}
    return {"type": "tag", "begin": f"<call>{name}: ", "content": content, "end": "</call>"}


def call(name: str) -> str:
    return f'<call>{name}: {{"a": 1}}</call>'


_TRIGGERED = {"type": "triggered_tags", "triggers": ["<call>"], "tags": [tag("f"), tag("g")]}
_SEPARATED = {"type": "tags_with_separator", "tags": [tag("f"), tag("g")], "separator": "; "}
_ANY = {"type": "any_text"}


def guide(form: Any) -> Guide:
    return Guide(GuideType.STRUCTURAL_TAG, json.dumps({"type": "structural_tag", "format": form}))


def allows(compiler: GuideCompiler, library: tokenizers.Tokenizer, form: Any, text: str) -> bool:
    """Whether the text may be written, and may end there."""
    matcher = compiler.compile(guide(form))
    for token_id in library.encode(text, add_special_tokens=False).ids:
        if not allowed_by(matcher)[token_id]:
            return False
        matcher.advance([token_id])
    end = library.token_to_id("<|end|>")
    return bool(allowed_by(matcher)[end])


@pytest.mark.parametrize(
    ("form", "text", "is_allowed"),
    [
        (_TRIGGERED, "", True),
        (_TRIGGERED, "hi <cal", True),
        (_TRIGGERED, f"hi {call('f')}", True),
        (_TRIGGERED, f"{call('g')} and {call('f')} bye", True),
        (_TRIGGERED, "<call>", False),
        (_TRIGGERED, call("h"), False),
        (_TRIGGERED, f"{call('f')}<call>", False),
        ({**_TRIGGERED, "stop_after_first": True}, f"hi {call('f')}", True),
        ({**_TRIGGERED, "stop_after_first": True}, "hi", True),
        ({**_TRIGGERED, "stop_after_first": True}, f"{call('f')} bye", False),
        ({**_TRIGGERED, "at_least_one": True}, "hi", False),
        ({**_TRIGGERED, "at_least_one": True}, f"hi {call('f')} bye", True),
        (_SEPARATED, "", True),
        (_SEPARATED, f"{call('f')}; {call('g')}", True),
        (_SEPARATED, f"{call('f')}{call('g')}", False),
        (_SEPARATED, "hi", False),
        ({**_SEPARATED, "at_least_one": True}, "", False),
        ({**_SEPARATED, "at_least_one": True, "stop_after_first": True}, call("f"), True),
        ({**_SEPARATED, "at_least_one": True, "stop_after_first": True}, f"{call('f')}; {call('f')}", False),
        ({"type": "or", "elements": [tag("f"), {"type": "const_string", "value": "no"}]}, "no", True),
        ({"type": "or", "elements": [tag("f"), {"type": "const_string", "value": "no"}]}, "yes", False),
        ({"type": "regex", "pattern": "[0-9]{2}"}, "12", True),
        ({"type": "regex", "pattern": "[0-9]{2}"}, "123", False),
        ({"type": "tag", "begin": "", "content": _ANY, "end": "</t>"}, "a < b</t>", True),
        ({"type": "tag", "begin": "", "content": _ANY, "end": "</t>"}, "a</t>b", False),
        ({"type": "json_schema", "json_schema": True}, '{"any": 1}', True),
    ],
)
def test_exactly_the_texts_of_a_tag_are_allowed(
    form: Any, text: str, is_allowed: bool, compiler: GuideCompiler, library: tokenizers.Tokenizer
) -> None:
    validate(guide(form))
    assert allows(compiler, library, form, text) is is_allowed


def test_special_tokens_in_a_tag_are_those_tokens(library: tokenizers.Tokenizer, tmp_path: Path) -> None:
    other = tokenizers.Tokenizer.from_str(library.to_str())
    other.add_special_tokens(["[CALLS]"])
    other.save(str(tmp_path / "tokenizer.json"))
    size = other.get_vocab_size()
    compiler = GuideCompiler(tmp_path / "tokenizer.json", vocab_size=size, end_id=size - 2)
    matcher = compiler.compile(guide({"type": "const_string", "value": "a[CALLS] b"}))
    for token_id in [*other.encode("a").ids, size - 1, *other.encode(" b").ids]:
        assert allowed_by(matcher)[token_id]
        matcher.advance([token_id])


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("no JSON", "not valid JSON"),
        ("[1]", "structural_tag"),
        ('{"type": "structural_tag"}', "format must be an object"),
        ('{"type": "structural_tag", "format": {"type": "nothing"}}', "format must be an object with one of the types"),
        (guide({"type": "or", "elements": []}).source, "at least one"),
        (guide({**_TRIGGERED, "triggers": ["<other>"]}).source, "must start with the trigger"),
        (guide({**_TRIGGERED, "triggers": ["<call>", "<b>"]}).source, "one trigger"),
        (guide(tag("f", 1)).source, "must be an object"),
        (guide(tag("f", {"type": "objec"})).source, "objec"),
        (guide(tag("f", {"not": {}})).source, 'In the tag that begins with "<call>f: ": At the root: no value'),
        (guide({"type": "const_string", "value": 1}).source, "must be a string"),
        (guide({"type": "regex", "pattern": "(a"}).source, "can't be used"),
        (guide({"type": "any_text", "excludes": ["a"]}).source, "excludes"),
        (guide([[]] * 3).source, "must be an object"),
    ],
)
def test_an_invalid_tag_is_refused_with_the_reason(source: str, reason: str, compiler: GuideCompiler) -> None:
    for compile_guide in (validate, compiler.compile):
        with pytest.raises(GuideError) as caught:
            compile_guide(Guide(GuideType.STRUCTURAL_TAG, source))
        assert reason in str(caught.value)


def test_depth_and_number_of_parts_are_limited() -> None:
    deep: Any = _ANY
    for _ in range(100):
        deep = {"type": "sequence", "elements": [deep]}
    for form in (deep, {"type": "sequence", "elements": [_ANY] * 5000}):
        with pytest.raises(GuideError, match="too many parts"):
            validate(guide(form))
