"""A preprocess stage for tests: its parameters, its limits, and the error of a rejected request."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llm_pipeline.protocol.errors import PipelineError
from llm_pipeline.protocol.messages import CompletionParameters
from llm_pipeline.stages.preprocess import PreprocessStage

CONTEXT = 64
VOCABULARY = 1000
PARAMETERS = CompletionParameters(request_key="key", request_id="id", token_ids=(1, 2, 3))


def refusal(stage: PreprocessStage, **fields: Any) -> PipelineError:
    """The error for PARAMETERS with these fields."""
    with pytest.raises(PipelineError) as caught:
        stage.prepare(replace(PARAMETERS, **fields))
    return caught.value
