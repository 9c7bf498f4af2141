"""suffix: the special tokens of each model family and their order."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tokenizers import Tokenizer as Library
from tokenizers import models, processors

from llm_pipeline.protocol.capabilities import CAPABILITIES
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.protocol.messages import CompletionParameters
from llm_pipeline.stages.preprocess import PreprocessStage
from llm_pipeline.text.fill_in_middle import FAMILIES, Family
from llm_pipeline.text.tokenizer import Tokenizer
from tests.support.sample_requests import make_manifest

REQUEST = CompletionParameters(request_key="key", request_id="id", prompt_text="ab", suffix="ba")
A, B, BOS = 0, 1, 2


def stage_of(*tokens: str, has_bos: bool = False) -> PreprocessStage:
    library = Library(models.BPE({"a": A, "b": B}, []))
    library.add_special_tokens(["<s>", *tokens])
    if has_bos:
        library.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return PreprocessStage(Tokenizer(library), make_manifest(end_ids=(9,)), CAPABILITIES["cpu"], default_max_tokens=4)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.prefix)
def test_each_family_has_its_own_order(family: Family) -> None:
    names = [name for name in (family.prefix, family.suffix, family.middle) if name]
    request = stage_of(*names, has_bos=True).prepare(REQUEST)
    before, after = [3, A, B], [4, B, A]
    parts = [*after, *before] if family.suffix_first else [*before, *after, 5]
    assert list(request.prompt_ids) == [BOS, *parts]


def test_without_a_bos_the_prompt_starts_with_the_prefix_token_and_ids_are_used_unchanged() -> None:
    stage = stage_of("<fim_prefix>", "<fim_suffix>", "<fim_middle>")
    assert stage.prepare(replace(REQUEST, prompt_text=None, token_ids=(B,))).prompt_ids == (3, B, 4, B, A, 5)


def test_the_end_tokens_of_the_family_end_the_middle() -> None:
    stage = stage_of("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|file_sep|>")
    assert stage.prepare(REQUEST).stop_token_ids == (9, 6)
    assert stage.prepare(replace(REQUEST, suffix=None)).stop_token_ids == (9,)


@pytest.mark.parametrize("tokens", [(), ("<fim_prefix>", "<fim_suffix>")])
def test_suffix_is_rejected_without_the_tokens_of_a_family(tokens: tuple[str, ...]) -> None:
    with pytest.raises(PipelineError) as caught:
        stage_of(*tokens).prepare(REQUEST)
    assert (caught.value.code, caught.value.param) == (ErrorCode.UNSUPPORTED_PARAMETER, "suffix")


@pytest.mark.parametrize(
    ("request_with_both", "other"),
    [(replace(REQUEST, echo=True), "echo"), (replace(REQUEST, truncate_prompt_tokens=3), "truncate_prompt_tokens")],
    ids=["echo", "truncate_prompt_tokens"],
)
def test_fields_that_would_break_the_order_are_rejected(request_with_both: CompletionParameters, other: str) -> None:
    stage = stage_of("<fim_prefix>", "<fim_suffix>", "<fim_middle>")
    with pytest.raises(PipelineError) as caught:
        stage.prepare(request_with_both)
    assert caught.value.param == other
