"""Traps of upstream's Response and Result, one per test.

Each docstring describes upstream's behavior, which the fake copies (tests/fakes) as far as the API facts go.
"""

from __future__ import annotations

from typing import Any

import pytest

from llm_pipeline.executors.tensorrt_llm.engine import Ending, EngineResponse
from llm_pipeline.executors.tensorrt_llm.responses import LiveRequest, to_output
from tests.support.sample_requests import make_request
from tests.support.trtllm_bench import CreateBench, TrtllmBench, request_with


def test_has_error_is_called_before_the_result_is_read(bench: TrtllmBench) -> None:
    """Error and result are alternatives of one variant; a bound method is always true."""
    from llm_pipeline.executors.tensorrt_llm import bindings

    class OnlyAnError:
        request_id, error_msg = 7, "it broke"

        def has_error(self) -> bool:
            return True

        @property
        def result(self) -> Any:
            raise AssertionError("the result of an error was read")

    response = bindings.read_response(OnlyAnError())
    assert response is not None
    assert (response.error, response.must_cancel) == ("it broke", False)


def test_response_without_a_readable_id_is_dropped(bench: TrtllmBench) -> None:
    from llm_pipeline.executors.tensorrt_llm import bindings

    assert bindings.read_response(object()) is None


@pytest.mark.parametrize("is_included", [False, True], ids=["omitted", "included"])
def test_stop_token_is_in_the_output_once(is_included: bool) -> None:
    """Upstream's sampling kernels do not advance the length on the end token: no release read so far returns it."""
    live = LiveRequest(1, request_with(stop_token_ids=(2,)))
    output = to_output(live, EngineResponse(1, (8, 2) if is_included else (8,), ending=Ending.END_ID))
    assert output is not None
    assert output.token_ids == (8, 2)


@pytest.mark.parametrize("repeats", [False, True], ids=["of new tokens", "of all so far"])
def test_each_token_has_a_logprob_except_the_stop_token(create_bench: CreateBench, repeats: bool) -> None:
    bench = create_bench(
        script={
            "repeats_log_probs": repeats,
            "rules": [{"prompt_ids": [5, 6, 7], "token_ids": [8, 9, 10], "finish": "END_ID"}],
        }
    )
    bench.end_of(request_with(stop_token_ids=(2,), max_tokens=8, return_logprobs=True))
    outputs = bench.outputs("request")
    assert [value for output in outputs for value in output.logprobs] == [-0.5, -0.5, -0.5, None]
    assert all(len(output.logprobs) == len(output.token_ids) for output in outputs)


def test_logprobs_are_returned_only_on_request(bench: TrtllmBench) -> None:
    bench.end_of(make_request())
    assert all(output.logprobs == () for output in bench.outputs("request"))
