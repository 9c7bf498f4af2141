"""Messages between decode and the engine process survive pickling."""

from __future__ import annotations

import pickle
from typing import TypeVar

from llm_pipeline.executors.cpu.engine.ipc import CacheCounts, StepOutput, StepReport
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.protocol.messages import FinishReason, PromptLogprobs

T = TypeVar("T")


def unpickled(value: T) -> T:
    """Pickles and unpickles a value, as it travels between the processes."""
    copy: T = pickle.loads(pickle.dumps(value))  # noqa: S301 - the test's own value
    return copy


def test_steps_survive_pickling() -> None:
    steps = [
        StepOutput("a", (1,)),
        StepOutput("b", (2,), FinishReason.STOP, logprobs=(-0.5,), top_logprobs=(((2, 3), (-0.5, -1.0)),)),
        StepOutput("c", finish_reason=FinishReason.LENGTH, prompt_logprobs=PromptLogprobs((-1.0,), (((1,), (-1.0,)),))),
    ]
    report = StepReport(steps, 3, CacheCounts(10, 5, 0.5))
    assert unpickled(report) == report


def test_error_of_a_step_survives_pickling() -> None:
    error = PipelineError(ErrorCode.VALUE_OUT_OF_RANGE, "Too large.", param="guide", retry_after_s=2.0)
    copy = unpickled(StepOutput("a", error=error)).error
    assert copy is not None
    assert (copy.code, copy.message, copy.param, copy.retry_after_s, str(copy)) == (
        ErrorCode.VALUE_OUT_OF_RANGE,
        "Too large.",
        "guide",
        2.0,
        "Too large.",
    )
