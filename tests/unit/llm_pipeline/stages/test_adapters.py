"""LoRA adapters in preprocess: known names are passed on, unknown ones are a 404."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llm_pipeline.protocol.capabilities import CAPABILITIES
from llm_pipeline.protocol.errors import ErrorCode
from llm_pipeline.stages.preprocess import PreprocessStage
from llm_pipeline.text.tokenizer import Tokenizer
from tests.support.preprocess_requests import CONTEXT, PARAMETERS, VOCABULARY, refusal
from tests.support.sample_requests import make_manifest


@pytest.fixture
def lora_stage(byte_level: Tokenizer) -> PreprocessStage:
    manifest = make_manifest(context_length=CONTEXT, vocab_size=VOCABULARY, end_ids=(0, 2))
    capabilities = CAPABILITIES["tensorrt_llm_pytorch"]
    return PreprocessStage(byte_level, manifest, capabilities, default_max_tokens=16, adapters=["support"])


@pytest.mark.parametrize(("sent", "prepared"), [("support", "support"), (None, None), ("", None)])
def test_adapter_is_passed_to_the_executor(lora_stage: PreprocessStage, sent: str | None, prepared: str | None) -> None:
    assert lora_stage.prepare(replace(PARAMETERS, adapter=sent)).adapter == prepared


def test_unknown_adapter_is_a_model_that_does_not_exist(lora_stage: PreprocessStage) -> None:
    error = refusal(lora_stage, adapter="other")
    assert (error.code, error.param) == (ErrorCode.MODEL_NOT_FOUND, "model")


def test_executor_without_adapters_refuses_them(stage: PreprocessStage) -> None:
    error = refusal(stage, adapter="support")
    assert (error.code, error.param) == (ErrorCode.UNSUPPORTED_PARAMETER, "model")
