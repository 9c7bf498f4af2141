"""The responses of one wait for the engine become one step."""

from __future__ import annotations

from queue import Empty, Queue

from llm_pipeline.executors.tensorrt_llm.engine import Ending, EngineResponse, EngineStats
from llm_pipeline.executors.tensorrt_llm.executor import TensorRtLlmExecutor, Timeouts
from llm_pipeline.executors.tensorrt_llm.request_limits import RequestLimits
from llm_pipeline.protocol.messages import EngineStep, FinishReason, GenerationRequest, RequestEnd
from tests.support.executor_rules import DEADLINE_S, violations_of
from tests.support.trtllm_bench import request_with

NUMBERS = (70, 50)  # of the requests that the engine calls 1 and 2
LIMITS = RequestLimits(vocab_size=1000, max_seq_len=1000, max_prompt_tokens=1000, has_guided_decoding=False)


class BatchingEngine:
    """An Engine whose waits return exactly the batches of responses that the test puts into `batches`."""

    def __init__(self) -> None:
        self.batches: Queue[list[EngineResponse]] = Queue()
        self._request_count = 0

    def can_enqueue(self) -> bool:
        return True

    def prepare(self, request: GenerationRequest) -> object:
        return request

    def enqueue(self, prepared: object) -> int:
        self._request_count += 1
        return self._request_count

    def await_responses(self, timeout_s: float) -> list[EngineResponse]:
        try:
            return self.batches.get(timeout=timeout_s)
        except Empty:
            return []

    def cancel(self, request_id: int) -> None:
        pass

    def newest_stats(self) -> EngineStats | None:
        return None

    def shutdown(self) -> None:
        pass


def steps_of(*batches: list[EngineResponse], logprobs: bool = False) -> list[EngineStep]:
    """Returns the steps that two requests get when the engine responds with these batches."""
    steps: Queue[EngineStep] = Queue()
    engine = BatchingEngine()
    timeouts = Timeouts(5.0, 0.0, close_s=0.1)
    executor = TensorRtLlmExecutor(engine, LIMITS, steps.put, max_batch_size=8, timeouts=timeouts)
    for number in NUMBERS:
        executor.submit(number, request_with(return_logprobs=logprobs))
    for batch in batches:
        engine.batches.put(batch)
    received = [steps.get(timeout=DEADLINE_S) for _ in batches]
    executor.close()
    assert [violation for step in received for violation in violations_of(step)] == []
    return received


def test_one_token_of_each_request_is_a_step_without_counts() -> None:
    (step,) = steps_of([EngineResponse(2, (20,)), EngineResponse(1, (10,))])
    assert (step.numbers.tolist(), step.token_ids.tolist(), step.counts) == ([50, 70], [20, 10], None)


def test_responses_of_one_request_are_merged_in_order() -> None:
    responses = [
        EngineResponse(1, (10,)),
        EngineResponse(2, (20,)),
        EngineResponse(1, (11, 12)),
        EngineResponse(1, (13,), ending=Ending.LENGTH),
        EngineResponse(2, (21,)),
    ]
    (step,) = steps_of(responses)
    assert step.counts is not None
    assert (step.numbers.tolist(), step.counts.tolist()) == ([70, 50], [4, 2])
    assert step.token_ids.tolist() == [10, 11, 12, 13, 20, 21]
    assert list(step.ends) == [RequestEnd(70, FinishReason.LENGTH)]


def test_logprobs_of_merged_responses_are_joined() -> None:
    responses = [EngineResponse(1, (10,), (-0.1,)), EngineResponse(1, (11,), (-0.2,)), EngineResponse(2, (20,), ())]
    (step,) = steps_of(responses, logprobs=True)
    assert {number: values.logprobs for number, values in step.logprobs.items()} == {70: (-0.1, -0.2), 50: (None,)}


def test_response_after_the_end_in_the_same_wait_is_ignored() -> None:
    (step,) = steps_of([EngineResponse(1, (10,), ending=Ending.STOP_WORDS), EngineResponse(1, (11,))])
    assert step.token_ids.tolist() == [10]
    assert list(step.ends) == [RequestEnd(70, FinishReason.STOP)]


def test_wait_without_new_tokens_makes_no_step() -> None:
    (step,) = steps_of([EngineResponse(1, ()), EngineResponse(2, (20,))])
    assert step.numbers.tolist() == [50]
