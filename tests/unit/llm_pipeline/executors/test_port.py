"""The executor port's GuardedSink."""

from __future__ import annotations

import numpy as np
import pytest

from llm_pipeline.executors.port import GuardedSink
from llm_pipeline.protocol.messages import EngineStep, FinishReason, RequestEnd, ends_only


def test_steps_with_tokens_or_ends_are_passed_on_and_empty_steps_are_not() -> None:
    calls: list[EngineStep] = []
    output = GuardedSink(calls.append)
    tokens = EngineStep(np.array([1, 2]), np.array([10, 20]))
    ends = ends_only([RequestEnd(1, FinishReason.STOP)])
    for step in (tokens, ends_only([]), ends):
        output.emit(step)
    assert calls == [tokens, ends]


def test_exception_in_the_sink_is_logged_and_not_raised(caplog: pytest.LogCaptureFixture) -> None:
    def sink(step: EngineStep) -> None:
        raise RuntimeError("a bug in the sink")

    GuardedSink(sink).emit(EngineStep(np.array([1]), np.array([10])))
    assert "a step with 1 tokens and 0 endings is lost" in caplog.text
    assert "a bug in the sink" in caplog.text
