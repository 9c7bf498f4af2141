"""Prompt lookup on the real graph: a draft's rows are those of single steps, bit for bit, in short contexts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from llm_pipeline.executors.cpu.engine.core import EngineCore
from llm_pipeline.executors.cpu.engine.ipc import StepOutput
from llm_pipeline.executors.cpu.engine.paged_model import PagedModel
from llm_pipeline.executors.cpu.engine.scheduler import ScheduledChunk
from llm_pipeline.executors.cpu.engine.weights import load_weights
from llm_pipeline.protocol.messages import GenerationRequest, SamplingParams

PATTERN = (1532, 504, 338, 6330, 282, 260, 905, 28, 563, 314, 11, 198)


@pytest.fixture(scope="module")
def model(engine_dir: Path) -> PagedModel:
    return PagedModel(load_weights(engine_dir), kv_cache_bytes=2**26)


def steps(model: PagedModel, sampling: SamplingParams, *, max_draft_tokens: int) -> list[StepOutput]:
    """Runs two requests one after the other, so that the second reuses blocks with drafts in them."""
    engine = EngineCore(
        model, max_batched_tokens=64, max_active=2, prefix_cache=False, max_draft_tokens=max_draft_tokens
    )
    outputs = []
    for key in ("first", "second"):
        engine.add(
            GenerationRequest(key, PATTERN * 6, 80, sampling, return_logprobs=True, num_top_logprobs=3),
        )
        while engine.has_work:
            outputs += engine.step()
    assert (engine.draft_counts.accepted > 40) == (max_draft_tokens > 0)
    return outputs


@pytest.mark.parametrize("is_greedy", [True, False], ids=["greedy", "sampled"])
def test_tokens_and_logprobs_are_exactly_those_without_drafts(model: PagedModel, is_greedy: bool) -> None:
    sampling = SamplingParams(is_greedy=is_greedy, temperature=0.5, seed=11)
    plain = steps(model, sampling, max_draft_tokens=0)
    drafted = steps(model, sampling, max_draft_tokens=14)
    assert len(drafted) < len(plain)
    for values in ("token_ids", "logprobs", "top_logprobs"):
        assert [value for step in drafted for value in getattr(step, values)] == [
            value for step in plain for value in getattr(step, values)
        ]


def test_warm_up_runs_a_step_of_each_size_with_drafts(engine_dir: Path) -> None:
    sizes: list[int] = []

    class RecordedModel(PagedModel):
        def run(self, chunks: Sequence[ScheduledChunk]) -> npt.NDArray[np.float32]:
            sizes.append(sum(len(chunk.tokens) for chunk in chunks))
            return super().run(chunks)

    model = RecordedModel(load_weights(engine_dir), kv_cache_bytes=2**26)
    model.warm_up(limit_s=60)
    assert sizes == list(range(1, model.draft_step_tokens + 1))
    model.warm_up(limit_s=0)
    assert len(sizes) == model.draft_step_tokens
