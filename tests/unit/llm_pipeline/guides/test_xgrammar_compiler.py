"""Guides are compiled with xgrammar before TensorRT-LLM does: one that fails inside the engine fails all requests."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_pipeline.guides.checks import check_guide
from llm_pipeline.guides.compilers import llguidance_compiler
from llm_pipeline.guides.compilers.xgrammar_compiler import XgrammarCompiler
from llm_pipeline.guides.guide_process import try_compile
from llm_pipeline.guides.limits import GuideLimits
from llm_pipeline.guides.masks import GuideError
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.protocol.messages import GUIDE_PARAM, Guide, GuideType
from tests.support.guide_schemas import SCHEMAS
from tests.support.guide_service import CreateService, ServiceBench
from tests.support.hostile_guides import HOSTILE, schema
from tests.support.waiting import wait_until

TAG = {
    "type": "structural_tag",
    "format": {"type": "tag", "begin": "<a>", "content": {"type": "json_schema", "json_schema": {}}, "end": "</a>"},
}


def guide(kind: str, text: str | None) -> Guide:
    return Guide(GuideType(kind), text)


def tag(document: object) -> Guide:
    return Guide(GuideType.STRUCTURAL_TAG, json.dumps(document))


@pytest.mark.parametrize(
    "accepted",
    [
        guide("json", None),
        guide("regex", r"[a-z]{3}-\d+"),
        guide("ebnf_grammar", 'root ::= "cat" | "dog" " " root'),
        tag(TAG),
        *(schema(value) for value in SCHEMAS[:20]),
    ],
    ids=repr,
)
def test_an_ordinary_guide_is_accepted(xgrammar_compiler: XgrammarCompiler, accepted: Guide) -> None:
    xgrammar_compiler.compile(accepted)


@pytest.mark.parametrize(
    ("kind", "text", "reason"),
    [
        ("json_schema", '{"type": "objec"}', 'Unsupported type "objec"'),
        ("regex", "(a", "not closed"),
        ("regex", r"(a)\1", "Backreference"),
        ("regex", "\0a", "NUL"),
        ("ebnf_grammar", 'start: "a"', "line 1, column 6"),
        ("ebnf_grammar", "root ::= nowhere", "nowhere"),
        ("structural_tag", "no JSON", "JSON"),
        ("structural_tag", json.dumps({"type": "structural_tag", "format": {"type": "nothing"}}), "nothing"),
        ("structural_tag", json.dumps({"structures": [], "triggers": []}), "format field"),
    ],
)
def test_an_invalid_guide_is_rejected_with_the_reason(
    xgrammar_compiler: XgrammarCompiler, kind: str, text: str, reason: str
) -> None:
    with pytest.raises(GuideError) as caught:
        xgrammar_compiler.compile(guide(kind, text))
    message = str(caught.value)
    assert reason in message
    assert message.endswith(".")
    assert not set(message) & {"\n", "["}
    assert ".cc" not in message


def test_the_notation_of_llguidance_alone_is_rejected(xgrammar_compiler: XgrammarCompiler) -> None:
    """llguidance would accept it, and xgrammar fail the step of all requests."""
    lark = guide("ebnf_grammar", 'start: "cat" | "dog"')
    llguidance_compiler.validate(lark)
    with pytest.raises(GuideError):
        xgrammar_compiler.compile(lark)


def test_a_kind_that_an_older_xgrammar_lacks_is_rejected(
    xgrammar_compiler: XgrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It must not pass unchecked. Before 0.1.25, `compile_structural_tag` takes other arguments."""
    from xgrammar.compiler import GrammarCompiler

    monkeypatch.setattr(GrammarCompiler, "compile_structural_tag", lambda self, tags, triggers: None)
    maker, problem = try_compile(tag(TAG), xgrammar_compiler.compile)
    assert maker is None
    assert problem is not None
    assert "xgrammar" in problem


def test_neither_torch_nor_transformers_is_imported(xgrammar_compiler: XgrammarCompiler) -> None:
    """They would take seconds and hundreds of MiB in the process that is forked for each guide."""
    xgrammar_compiler.compile(guide("json", None))
    assert "transformers" not in sys.modules
    assert "xgrammar.contrib" not in sys.modules


# --- In the service --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bench(create_module_service: CreateService) -> ServiceBench:
    return create_module_service(GuideLimits(compile_cpu_s=0.5), compiler="xgrammar")


def test_a_valid_guide_gets_a_verdict_and_no_process_is_kept(bench: ServiceBench) -> None:
    for valid in (tag(TAG), guide("ebnf_grammar", 'root ::= "a"')):
        prepared = bench.prepare(valid).wait()
        assert (prepared.address, prepared.error) == (None, None)
    wait_until(lambda: not bench.children(), what="the end of the processes")


@pytest.mark.parametrize("kind", ["regex", "ebnf_grammar", "structural_tag"])
def test_an_invalid_guide_is_a_400(bench: ServiceBench, kind: str) -> None:
    error = bench.prepare(guide(kind, "(")).wait().error
    assert error is not None
    assert (error.code, error.param) == (ErrorCode.VALUE_OUT_OF_RANGE, GUIDE_PARAM)


@given(st.sampled_from(GuideType), st.text() | st.recursive(st.none() | st.booleans(), st.lists).map(json.dumps))
@settings(max_examples=100)
def test_any_guide_is_accepted_or_rejected(bench: ServiceBench, kind: GuideType, text: str) -> None:
    """In the service, since some guides end the process that compiles them."""
    with suppress(PipelineError):
        check_guide(Guide(kind, text))
        error = bench.prepare(Guide(kind, text)).wait().error
        assert error is None or (error.code, error.param) == (ErrorCode.VALUE_OUT_OF_RANGE, GUIDE_PARAM)


def test_a_guide_that_ends_the_process_is_a_400(bench: ServiceBench) -> None:
    """xgrammar 0.1.32 reads an expression that begins with NUL beyond its end."""
    error = bench.prepare(schema({"type": "string", "pattern": "\0a"})).wait().error
    assert error is None or (error.code, error.param) == (ErrorCode.VALUE_OUT_OF_RANGE, GUIDE_PARAM)
    assert bench.prepare(guide("regex", "a")).wait().error is None


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_guide_ends_within_its_limits(kind: str, bench: ServiceBench) -> None:
    prepared = bench.prepare(HOSTILE[kind], f"hostile {kind}").wait()
    if prepared.error is not None:
        assert (prepared.error.code, prepared.error.param) == (ErrorCode.VALUE_OUT_OF_RANGE, GUIDE_PARAM)
        assert len(prepared.error.message) < 500


def test_a_guide_too_deep_for_the_stack_of_the_engines_thread_is_refused(bench: ServiceBench) -> None:
    """The engine compiles on a thread with 2 to 8 MiB of stack; its overflow would end the engine."""
    deep = guide("ebnf_grammar", "root ::= " + "(" * 20_000 + '"a"' + ")" * 20_000)
    error = bench.prepare(deep).wait().error
    assert error is not None
    assert (error.code, error.param) == (ErrorCode.VALUE_OUT_OF_RANGE, GUIDE_PARAM)


def test_without_xgrammar_guides_are_refused(
    tokenizer_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a verdict, one bad guide would end every request of the engine."""
    package = tmp_path / "xgrammar"
    package.mkdir()
    (package / "__init__.py").write_text("")  # hides the real one, and has no compiler
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    bench = ServiceBench(GuideLimits(), compiler="xgrammar", tokenizer_file=tokenizer_file, vocab_size=500, end_ids=[1])
    try:
        for valid in (guide("regex", "a"), tag(TAG)):
            error = bench.prepare(valid).wait().error
            assert error is not None
            assert error.code is ErrorCode.SERVICE_UNAVAILABLE
    finally:
        bench.close()
