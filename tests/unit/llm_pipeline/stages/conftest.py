"""A preprocess stage with a byte-level tokenizer."""

from __future__ import annotations

import pytest

from llm_pipeline.protocol.capabilities import CAPABILITIES
from llm_pipeline.stages.preprocess import PreprocessStage
from llm_pipeline.text.tokenizer import Tokenizer
from tests.support.preprocess_requests import CONTEXT, VOCABULARY
from tests.support.sample_requests import make_manifest


@pytest.fixture
def stage(byte_level: Tokenizer) -> PreprocessStage:
    manifest = make_manifest(context_length=CONTEXT, vocab_size=VOCABULARY, end_ids=(0, 2))
    return PreprocessStage(byte_level, manifest, CAPABILITIES["cpu"], default_max_tokens=16)
