"""The executor port's GuardedSink."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from llm_pipeline.executors.port import GuardedSink
from llm_pipeline.protocol.messages import StepOutput


def test_steps_are_passed_on_in_one_call_and_empty_lists_are_not() -> None:
    calls: list[Sequence[StepOutput]] = []
    output = GuardedSink(calls.append)
    output.emit([])
    output.emit([StepOutput("a"), StepOutput("b")])
    assert calls == [[StepOutput("a"), StepOutput("b")]]


def test_exception_in_the_sink_is_logged_and_not_raised(caplog: pytest.LogCaptureFixture) -> None:
    def sink(steps: Sequence[StepOutput]) -> None:
        raise RuntimeError("a bug in the sink")

    GuardedSink(sink).emit([StepOutput("a")])
    assert "1 steps are lost" in caplog.text
    assert "a bug in the sink" in caplog.text
