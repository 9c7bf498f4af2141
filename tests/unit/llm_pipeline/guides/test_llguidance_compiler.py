"""Guided decoding: invalid guides are rejected with the reason, and every allowed text matches its guide."""

from __future__ import annotations

import json
import random
import re
import sys
from contextlib import suppress
from typing import Any

import jsonschema
import llguidance
import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_pipeline.guides.checks import check_guide
from llm_pipeline.guides.compilers.llguidance_compiler import GuideCompiler, validate
from llm_pipeline.guides.guide_process import try_compile
from llm_pipeline.guides.masks import GuideError
from llm_pipeline.protocol.errors import PipelineError
from llm_pipeline.protocol.messages import Guide, GuideType
from tests.support.guide_schemas import SCHEMAS
from tests.support.guide_walks import allowed_by, random_text, unpacked


def json_guide(schema: object) -> Guide:
    return Guide(GuideType.JSON_SCHEMA, json.dumps(schema))


# --- Refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schema", SCHEMAS, ids=json.dumps)
def test_a_supported_schema_is_accepted(schema: object, compiler: GuideCompiler) -> None:
    guide = json_guide(schema)
    check_guide(guide)
    validate(guide)
    compiler.compile(guide)


@pytest.mark.parametrize(
    ("kind", "text", "reason"),
    [
        ("json_schema", '{"type": "objec"}', "objec"),
        ("json_schema", '{"minimum": "a"}', "minimum"),
        ("json_schema", '{"$ref": "#/nowhere"}', "nowhere"),
        ("json_schema", '{"$ref": "http://localhost/schema"}', "localhost"),
        ("json_schema", '{"not": {"type": "string"}}', "not"),
        ("json_schema", '{"items":' * 400 + "{}" + "}" * 400, "nested too deeply"),
        ("json_schema", '{"type": "string", "pattern": "(a"}', "/pattern: the pattern"),
        ("regex", "(a", "is not closed"),
        ("regex", r"(a)\1", "ack-references"),
        ("ebnf_grammar", "hello", "GBNF"),
        ("ebnf_grammar", "start: nowhere", "nowhere"),
    ],
)
def test_an_invalid_guide_is_rejected_with_the_reason(
    kind: str, text: str, reason: str, compiler: GuideCompiler
) -> None:
    guide = Guide(GuideType(kind), text)
    check_guide(guide)
    for compile_guide in (validate, compiler.compile):
        with pytest.raises(GuideError) as caught:
            compile_guide(guide)
        assert reason in str(caught.value)
        assert "\n" not in str(caught.value)


@given(
    st.sampled_from([kind for kind in GuideType if kind is not GuideType.STRUCTURAL_TAG]),
    st.text() | st.recursive(st.none() | st.booleans(), st.lists).map(json.dumps),
)
@settings(max_examples=300)
def test_any_guide_is_accepted_or_rejected(kind: GuideType, text: str) -> None:
    with suppress(PipelineError, GuideError):
        check_guide(Guide(kind, text))
        validate(Guide(kind, text))


# --- Matching --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schema", SCHEMAS, ids=json.dumps)
def test_every_text_under_a_schema_parses_and_validates(
    schema: dict[str, Any], compiler: GuideCompiler, library: tokenizers.Tokenizer
) -> None:
    for seed in range(5):
        value = json.loads(random_text(compiler, library, json_guide(schema), seed))
        jsonschema.validate(value, schema, format_checker=jsonschema.FormatChecker())


@pytest.mark.parametrize("pattern", [r"[a-z]{3}-\d+", r"(yes|no)", r"\d{4}-\d{2}", "ünï|日本|😀", r"a+b*c?"])
def test_every_text_under_an_expression_matches_it(
    pattern: str, compiler: GuideCompiler, library: tokenizers.Tokenizer
) -> None:
    for seed in range(20):
        text = random_text(compiler, library, Guide(GuideType.REGEX, pattern), seed)
        assert re.fullmatch(pattern, text)


@pytest.mark.parametrize("grammar", ['root ::= "cat" | "dog" " " root', 'start: "cat" | "dog" " " start'])
def test_grammars_come_in_two_notations(grammar: str, compiler: GuideCompiler, library: tokenizers.Tokenizer) -> None:
    for seed in range(20):
        text = random_text(compiler, library, Guide(GuideType.EBNF_GRAMMAR, grammar), seed)
        assert re.fullmatch("(dog )*cat", text)


def test_two_matchers_of_one_guide_are_independent(compiler: GuideCompiler) -> None:
    first, second = (compiler.compile(Guide(GuideType.REGEX, "ab")) for _ in range(2))
    before = allowed_by(second)
    first.advance(np.flatnonzero(allowed_by(first))[:1].tolist())
    assert np.array_equal(allowed_by(second), before)


def test_a_token_that_is_not_allowed_ends_in_an_error(compiler: GuideCompiler) -> None:
    matcher = compiler.compile(Guide(GuideType.REGEX, "a"))
    matcher.advance([int(np.flatnonzero(~allowed_by(matcher))[0])])
    with pytest.raises(GuideError):
        allowed_by(matcher)


@pytest.mark.parametrize("seed", range(8))
def test_the_masks_after_a_draft_are_those_without_it_and_leave_the_text_as_it_is(
    seed: int, compiler: GuideCompiler, library: tokenizers.Tokenizer
) -> None:
    dice = random.Random(seed)
    drafting = compiler.compile(json_guide(SCHEMAS[seed * 5]))
    plain = drafting.copy()
    end = library.token_to_id("<|end|>")
    for _ in range(60):
        scout, expected = plain.copy(), [allowed_by(plain)]
        draft: list[int] = []
        while len(draft) < 6 and dice.random() < 0.8:
            token_id = dice.choice(np.flatnonzero(expected[-1]).tolist())
            draft.append(token_id)
            if token_id == end:
                break
            scout.advance([token_id])
            expected.append(allowed_by(scout))
        if draft and draft[-1] != end and dice.random() < 0.5:
            draft.append(int(np.flatnonzero(~expected[-1])[0]))  # not allowed: the draft ends there
        rows = [unpacked(row) for row in drafting.masks(draft)]
        assert len(rows) >= len(expected)
        for row, mask in zip(rows, expected, strict=False):
            assert np.array_equal(row, mask)
        accepted = draft[: dice.randrange(len(expected))] if draft else []
        accepted = accepted or [dice.choice(np.flatnonzero(expected[0]).tolist())]
        if end in accepted:
            break
        drafting.advance(accepted)
        plain.advance(accepted)


def test_a_draft_that_is_late_ends_early(compiler: GuideCompiler) -> None:
    matcher = compiler.compile(Guide(GuideType.REGEX, "a{50}"))
    token_id = int(np.flatnonzero(allowed_by(matcher))[0])
    assert len(matcher.masks([token_id] * 5, lambda: True)) == 1
    assert len(matcher.masks([token_id] * 5)) == 6


@pytest.mark.parametrize(
    ("kind", "text"), [(GuideType.REGEX, "[0-9]+"), (GuideType.REGEX, "("), (GuideType.EBNF_GRAMMAR, 'root ::= "a"')]
)
def test_a_guide_that_an_older_llguidance_can_not_validate_is_left_to_the_executor(
    monkeypatch: pytest.MonkeyPatch, kind: GuideType, text: str
) -> None:
    """TensorRT-LLM depends on its own version, and has guided decoding of its own."""
    monkeypatch.delattr(llguidance, "regex_to_lark")
    monkeypatch.setitem(sys.modules, "llguidance.gbnf_to_lark", None)
    assert try_compile(Guide(kind, text), validate) == (None, None)


def test_a_guide_that_an_older_llguidance_can_validate_is_validated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(llguidance, "regex_to_lark")
    monkeypatch.setitem(sys.modules, "llguidance.gbnf_to_lark", None)
    _, problem = try_compile(Guide(GuideType.JSON_SCHEMA, '{"type": "nothing"}'), validate)
    assert problem is not None
    assert problem.startswith("At /type: `nothing` is not a type.")


def test_a_bug_of_the_library_is_a_problem_of_the_guide_without_its_text() -> None:
    def fail(guide: Guide) -> None:
        raise UnicodeError(guide.source)

    assert try_compile(Guide(GuideType.REGEX, "secret"), fail) == (None, "UnicodeError while it was compiled.")
