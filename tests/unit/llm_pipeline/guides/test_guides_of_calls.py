"""The guides of chat's tools: every text that they allow parses to calls with valid arguments."""

from __future__ import annotations

import itertools
import json
import random
from typing import Any

import jsonschema
import pytest
import tokenizers

from frontend.chat.parsing.reasoning import MARKERS
from frontend.chat.tools.formats import FORMATS, ToolFormat
from frontend.chat.tools.guides import CallRules, guide_of_answer
from llm_pipeline.guides.compilers.llguidance_compiler import GuideCompiler
from llm_pipeline.guides.compilers.xgrammar_compiler import XgrammarCompiler
from llm_pipeline.protocol.messages import Guide, GuideType
from tests.support.chat_answers import Answer, call_parser, read
from tests.support.guide_schemas import SCHEMAS, an_object
from tests.support.guide_walks import allowed_by, random_text

_PARTS = [schema for schema in SCHEMAS if "$ref" not in json.dumps(schema)]  # references lead to the root
_MIXED = random.Random(0).sample(_PARTS, len(_PARTS))
_TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": f"f{index}", "parameters": an_object({"a": schema, "b": other})}}
    for index, (schema, other) in enumerate(itertools.pairwise(_MIXED))
]
_BY_NAME = {f"f{index}": tool["function"]["parameters"] for index, tool in enumerate(_TOOLS)}


def rules_of(tool_format: ToolFormat, tools: list[dict[str, Any]], **changes: Any) -> CallRules:
    strict = {tool["function"]["name"] for tool in tools}
    return CallRules(tool_format, tools, **{"strict": strict, "is_required": True, "only_one": False, **changes})


def answers(
    compiler: GuideCompiler,
    library: tokenizers.Tokenizer,
    rules: CallRules,
    content: Guide | None = None,
    count: int = 3,
) -> list[Answer]:
    guide = guide_of_answer(rules, content, None, is_in_reasoning=False)
    assert guide is not None
    texts = [random_text(compiler, library, guide, seed) for seed in range(count)]
    return [read(call_parser(rules.tool_format.name, names=[*_BY_NAME]), [text]) for text in texts]


def check(answer: Answer) -> None:
    for _, name, arguments in answer.calls:
        jsonschema.validate(json.loads(arguments), _BY_NAME[name], format_checker=jsonschema.FormatChecker())


@pytest.mark.parametrize("tool_format", FORMATS, ids=lambda tool_format: tool_format.name)
@pytest.mark.parametrize("start", range(0, len(_TOOLS), 5))
def test_required_calls_have_valid_arguments(
    tool_format: ToolFormat, start: int, compiler: GuideCompiler, library: tokenizers.Tokenizer
) -> None:
    for answer in answers(compiler, library, rules_of(tool_format, _TOOLS[start : start + 5])):
        assert answer.has_complete_call
        assert answer.content == ""
        check(answer)


@pytest.mark.parametrize("tool_format", FORMATS, ids=lambda tool_format: tool_format.name)
def test_strict_calls_have_valid_arguments_beside_text(
    tool_format: ToolFormat, compiler: GuideCompiler, library: tokenizers.Tokenizer
) -> None:
    for answer in answers(compiler, library, rules_of(tool_format, _TOOLS[:4], is_required=False), count=12):
        check(answer)


@pytest.mark.parametrize("tool_format", FORMATS, ids=lambda tool_format: tool_format.name)
def test_only_one_call_is_allowed_without_parallel_calls(
    tool_format: ToolFormat, compiler: GuideCompiler, library: tokenizers.Tokenizer
) -> None:
    for answer in answers(compiler, library, rules_of(tool_format, _TOOLS[:2], only_one=True), count=5):
        assert len(answer.calls) == 1


@pytest.mark.parametrize("tool_format", FORMATS, ids=lambda tool_format: tool_format.name)
def test_an_answer_in_a_response_format_has_calls_or_that_form(
    tool_format: ToolFormat, compiler: GuideCompiler, library: tokenizers.Tokenizer
) -> None:
    content = Guide(GuideType.JSON_SCHEMA, '{"enum": ["red", "blue"]}')
    rules = rules_of(tool_format, _TOOLS[:2], is_required=False)
    both = set()
    for answer in answers(compiler, library, rules, content, count=20):
        check(answer)
        assert answer.calls or json.loads(answer.content) in ("red", "blue")
        both.add(bool(answer.calls))
    assert both == {True, False}


def test_a_function_without_parameters_gets_no_arguments(
    compiler: GuideCompiler, library: tokenizers.Tokenizer
) -> None:
    for parameters in (None, {}, {"type": "object", "properties": {}}):
        tools = [{"type": "function", "function": {"name": "f0", "parameters": parameters}}]
        for answer in answers(compiler, library, rules_of(FORMATS[0], tools)):
            assert {arguments for _, _, arguments in answer.calls} == {"{}"}


def test_a_schema_that_says_so_allows_more_arguments(compiler: GuideCompiler, library: tokenizers.Tokenizer) -> None:
    parameters = {"type": "object", "properties": {}, "additionalProperties": {"type": "boolean"}, "maxProperties": 2}
    tools = [{"type": "function", "function": {"name": "f0", "parameters": parameters}}]
    found = answers(compiler, library, rules_of(FORMATS[0], tools, only_one=True), count=10)
    assert any(arguments != "{}" for answer in found for _, _, arguments in answer.calls)


@pytest.mark.parametrize("is_in_reasoning", [False, True])
def test_reasoning_comes_before_what_is_guided(
    is_in_reasoning: bool, compiler: GuideCompiler, library: tokenizers.Tokenizer
) -> None:
    content = Guide(GuideType.REGEX, "[0-9]{3}")
    guide = guide_of_answer(None, content, MARKERS[0], is_in_reasoning=is_in_reasoning)
    assert guide is not None
    matcher = compiler.compile(guide)
    start = "" if is_in_reasoning else "<think>"
    matcher.advance(library.encode(f"{start}any text</think>\n\n123").ids)
    assert allowed_by(matcher)[library.get_vocab_size() - 1]  # the end
    assert guide_of_answer(None, content, None, is_in_reasoning=False) is content


@pytest.mark.parametrize("tool_format", FORMATS, ids=lambda tool_format: tool_format.name)
@pytest.mark.parametrize("only_one", [False, True])
@pytest.mark.parametrize("is_required", [False, True])
def test_xgrammar_compiles_the_same_guides(
    tool_format: ToolFormat, is_required: bool, only_one: bool, xgrammar_compiler: XgrammarCompiler
) -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": an_object({"a": {"type": "integer"}})}}]
    rules = rules_of(tool_format, tools, is_required=is_required, only_one=only_one)
    content = Guide(GuideType.JSON_SCHEMA, '{"type": "boolean"}')
    for markers, own, is_in_reasoning in itertools.product((None, MARKERS[0]), (None, content), (False, True)):
        guide = guide_of_answer(rules, own, markers, is_in_reasoning=is_in_reasoning)
        assert guide is not None
        xgrammar_compiler.compile(guide)
