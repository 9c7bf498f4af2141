"""Engine steps built request by request."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_pipeline.executors.step_builder import StepBuilder
from llm_pipeline.protocol.errors import internal_error
from llm_pipeline.protocol.messages import FinishReason, PromptLogprobs, RequestEnd, RequestLogprobs
from tests.support.executor_rules import outputs_of, violations_of


def test_step_of_one_token_for_each_request_has_no_counts() -> None:
    builder = StepBuilder()
    builder.add(7, (10,))
    builder.add(5, (20,))
    step = builder.build()
    assert step.counts is None
    assert (step.numbers.tolist(), step.token_ids.tolist()) == ([7, 5], [10, 20])


def test_empty_builder_makes_an_empty_step() -> None:
    step = StepBuilder().build()
    assert (len(step.numbers), len(step.token_ids), step.counts, list(step.ends)) == (0, 0, None, [])
    assert step.numbers.dtype == step.token_ids.dtype == np.int64


def test_ends_are_those_of_finish_reasons_and_errors() -> None:
    builder, error = StepBuilder(), internal_error()
    builder.add(1, (10,), FinishReason.STOP)
    builder.add(2, error=error)
    builder.add(3, (30,))
    step = builder.build()
    assert list(step.ends) == [RequestEnd(1, FinishReason.STOP), RequestEnd(2, error=error)]
    assert step.numbers.tolist() == [1, 3]


def test_logprobs_of_one_request_are_joined() -> None:
    builder, prompt = StepBuilder(), PromptLogprobs((-1.0,))
    builder.add(1, (10,), logprobs=RequestLogprobs((-0.1,), (((10,), (-0.1,)),), prompt))
    builder.add(1, (11,), logprobs=RequestLogprobs((None,), (((11,), (-0.2,)),)))
    builder.add(2, (20,))
    assert builder.build().logprobs == {1: RequestLogprobs((-0.1, None), (((10,), (-0.1,)), ((11,), (-0.2,))), prompt)}


@given(st.lists(st.tuples(st.integers(0, 4), st.lists(st.integers(0, 2**31 - 1), max_size=3).map(tuple)), max_size=12))
def test_tokens_of_each_request_are_joined_in_order(added: list[tuple[int, tuple[int, ...]]]) -> None:
    builder = StepBuilder()
    expected: dict[int, tuple[int, ...]] = {}
    for number, token_ids in added:
        builder.add(number, token_ids)
        if token_ids:
            expected[number] = (*expected.get(number, ()), *token_ids)
    step = builder.build()
    assert violations_of(step) == []
    assert {number: output.token_ids for number, output in outputs_of(step).items()} == expected


def test_token_that_is_not_an_integer_is_an_error() -> None:
    builder = StepBuilder()
    builder.add(1, ("text",))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="text"):
        builder.build()
