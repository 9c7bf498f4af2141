"""Errors of the engine on the fake: of one request, of one step, and fatal ones that end the process."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llm_pipeline.executors.tensorrt_llm.engine_health import MAX_FAILED_ROUNDS
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.protocol.messages import FinishReason, Guide, GuideType
from tests.support.executor_rules import DEADLINE_S
from tests.support.sample_requests import make_request
from tests.support.trtllm_bench import LONG, CreateBench, error_of, script
from tests.support.waiting import wait_until

CUDA_ERROR = (
    "Encountered an error in forwardAsync function: [TensorRT-LLM][ERROR] CUDA runtime error in "
    "::cudaEventRecord(get(), stream): {}"
)
# Appended to each message (cpp/tensorrt_llm/common/tllmException.cpp), with texts of other errors in it.
BACKTRACE = """ (/src/tensorrt_llm/cpp/tensorrt_llm/executor/executorImpl.cpp:1203)
1       0x7f7b3cc2d65c void tensorrt_llm::common::check<cudaError>(cudaError, char const*, char const*, int) + 92
2       0x7f7b3d7b74f2 tensorrt_llm::executor::Executor::Impl::shutdown(std::queue<int>::size_type, int prefixIdx) + 9
3       0x7f7b3d7b74f3 Shutdown called, Maximum queue size of 1 has been reached, misaligned address"""


@pytest.mark.parametrize(
    "rule", [{"error": "Encountered an error in forwardAsync function"}, {"breaks": True}], ids=["error", "unreadable"]
)
def test_error_response_fails_only_its_request(create_bench: CreateBench, rule: dict[str, Any]) -> None:
    bench = create_bench(script=script(token_ids=[8], **rule))
    other = bench.submit(make_request("other", prompt_ids=(1, 1), max_tokens=200))
    error = error_of(bench, make_request("broken"))
    assert error.code is ErrorCode.INTERNAL_ERROR
    assert "forwardAsync" not in error.message
    assert bench.recorder.wait_for_end(other).finish_reason is FinishReason.LENGTH
    assert bench.end_of(make_request("next", prompt_ids=(1, 2))).finish_reason is FinishReason.LENGTH


def test_request_with_an_unreadable_response_is_cancelled_upstream(create_bench: CreateBench) -> None:
    bench = create_bench(script=script(breaks=True))
    bench.end_of(make_request())
    wait_until(lambda: bench.fake.cancels == [1], limit_s=DEADLINE_S, what="the request is cancelled upstream")


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("Maximum queue size of 9 has been reached, please try again later", ErrorCode.QUEUE_FULL),
        (
            "Encountered an error when fetching new request: Prompt length (900) exceeds maximum input length (511). "
            "Set log level to info and check TRTGptModel logs for how maximum input length is set",
            ErrorCode.CONTEXT_LENGTH_EXCEEDED,
        ),
        (
            "Encountered an error when fetching new request: [TensorRT-LLM][ERROR] Assertion failed: Incorrect config",
            ErrorCode.VALUE_OUT_OF_RANGE,
        ),
        (
            "Encountered an error in forwardSync function: [TensorRT-LLM][ERROR] Assertion failed",
            ErrorCode.INTERNAL_ERROR,
        ),
        (CUDA_ERROR.format("invalid argument"), ErrorCode.INTERNAL_ERROR),
    ],
    ids=["full queue of an orchestrator", "prompt too long", "refused", "a failed step", "an error of one CUDA call"],
)
def test_error_response_has_the_error_code_of_its_cause(
    create_bench: CreateBench, message: str, code: ErrorCode
) -> None:
    bench = create_bench(script=script(error=message + BACKTRACE))
    error = error_of(bench, make_request())
    assert error.code is code
    assert not set(error.message.split()) & {"[TensorRT-LLM][ERROR]", "forwardSync", "TRTGptModel"}
    assert bench.end_of(make_request("next", prompt_ids=(1,))).finish_reason is FinishReason.LENGTH


@pytest.mark.parametrize(
    "message",
    [
        *(
            CUDA_ERROR.format(reason)
            for reason in (
                "an illegal memory access was encountered",
                "unspecified launch failure",
                "device-side assert triggered",
                "misaligned address",
                "uncorrectable ECC error encountered",
                "the launch timed out and was terminated",
            )
        ),
        "Encountered an error in forwardAsync function: [TensorRT-LLM][ERROR] Assertion failed: Failed: NCCL error "
        "/src/allreducePlugin.cpp:300 'unhandled cuda error (run with NCCL_DEBUG=INFO for details)'",
        "[TensorRT-LLM][ERROR] Assertion failed: Shutdown called",
        "Encountered an error in forwardAsync function: Executing TRT engine failed!",
    ],
)
def test_error_that_leaves_the_gpu_unusable_is_fatal(create_bench: CreateBench, message: str) -> None:
    bench = create_bench(script=script(error=message + BACKTRACE))
    assert error_of(bench, make_request()).code is ErrorCode.ENGINE_UNAVAILABLE
    assert bench.exited.wait(DEADLINE_S)


def test_engine_that_fails_all_requests_is_dead_whatever_its_error_text(create_bench: CreateBench) -> None:
    bench = create_bench(script=script(error="an unknown error"))
    codes = [error_of(bench, make_request(f"request {n}")).code for n in range(MAX_FAILED_ROUNDS)]
    assert set(codes) == {ErrorCode.INTERNAL_ERROR}
    assert bench.exited.wait(DEADLINE_S)
    with pytest.raises(PipelineError) as caught:
        bench.submit(make_request("late"))
    assert caught.value.code is ErrorCode.ENGINE_UNAVAILABLE


def test_engine_that_completes_other_requests_is_not_dead(create_bench: CreateBench) -> None:
    bench = create_bench(script=script(error="an unknown error"))
    for number in range(2 * MAX_FAILED_ROUNDS):
        assert error_of(bench, make_request(f"bad {number}")).code is ErrorCode.INTERNAL_ERROR
        bench.end_of(make_request(f"good {number}", prompt_ids=(1,), max_tokens=1))
    assert bench.exits == []


BAD_GUIDE = "[15:04:05] /project/cpp/regex_converter.cc:75: {}"


def test_guide_that_fails_the_step_of_all_requests_does_not_count_against_the_engine(
    create_bench: CreateBench, tmp_path: Path
) -> None:
    """Its sender could otherwise end the process at will, and loading the engine takes minutes."""
    tokenizer = {"model": {"vocab": {"Ġa": 8, "Ġb": 9}}, "decoder": {"type": "ByteLevel"}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    bench = create_bench(engine={"tokenizer": tmp_path / "tokenizer.json"}, trtllm_guided_decoding="xgrammar")
    for number in range(2 * MAX_FAILED_ROUNDS):
        other = bench.submit(make_request(f"other {number}", prompt_ids=(1,), max_tokens=LONG))
        bad = replace(make_request("bad", stop_token_ids=(2,)), guide=Guide(GuideType.REGEX, "(a"))
        assert error_of(bench, bad).code is ErrorCode.INTERNAL_ERROR
        assert bench.recorder.wait_for_end(other).error is not None
    assert bench.exits == []
    assert bench.end_of(make_request("next", prompt_ids=(1,))).finish_reason is FinishReason.LENGTH


def test_words_of_a_guide_in_an_error_are_not_taken_for_a_dead_engine(create_bench: CreateBench) -> None:
    message = BAD_GUIDE.format("Unexpected: Executing TRT engine failed! an illegal memory access was encountered")
    bench = create_bench(script=script(step_error=message))
    assert error_of(bench, make_request()).code is ErrorCode.INTERNAL_ERROR
    assert bench.exits == []


def test_step_that_fails_without_a_guide_counts(create_bench: CreateBench) -> None:
    bench = create_bench(script=script(step_error="an unknown error"))
    for number in range(MAX_FAILED_ROUNDS):
        error_of(bench, make_request(f"request {number}"))
    assert bench.exited.wait(DEADLINE_S)


def test_request_waits_in_front_of_an_engine_whose_queue_is_full(create_bench: CreateBench) -> None:
    bench = create_bench(trtllm_max_queue_size=1, engine={"max_batch_size": 30})
    bench.fake.max_batch_size = 1  # as if the KV cache had no room for more
    running = bench.submit(make_request("running", max_tokens=LONG))
    bench.recorder.wait_for_token(running)
    waiting = [bench.submit(make_request(f"waiting {n}", max_tokens=2)) for n in range(3)]
    assert bench.executor.stats().queued_requests == 3
    assert len(bench.fake.requests) == 2
    bench.executor.cancel(running)
    for number in waiting:
        assert bench.recorder.wait_for_end(number).finish_reason is FinishReason.LENGTH


def test_unknown_error_of_enqueue_reaches_decode_unchanged(create_bench: CreateBench) -> None:
    """Decode logs it and fails the request with 500."""
    bench = create_bench(script=script(enqueue_error="[TensorRT-LLM][ERROR] Assertion failed: something" + BACKTRACE))
    with pytest.raises(RuntimeError, match="something"):
        bench.submit(make_request())
    assert bench.executor.stats().queued_requests == 0
    assert bench.end_of(make_request("next", prompt_ids=(1,))).finish_reason is FinishReason.LENGTH


@pytest.mark.parametrize(
    ("message", "is_enqueueable"),
    [
        ("[TensorRT-LLM][ERROR] Assertion failed: Shutdown called, cannot enqueue requests" + BACKTRACE, True),
        ("an unknown error", False),
    ],
    ids=["upstream's message", "another message"],
)
def test_engine_that_accepts_no_more_requests_is_dead(
    create_bench: CreateBench, message: str, is_enqueueable: bool
) -> None:
    bench = create_bench(script=script(enqueue_error=message))
    bench.fake.is_enqueueable = is_enqueueable
    running = bench.submit(make_request("running", prompt_ids=(1,), max_tokens=LONG))
    with pytest.raises(PipelineError) as caught:
        bench.submit(make_request("rejected"))
    assert caught.value.code is ErrorCode.ENGINE_UNAVAILABLE
    error = bench.recorder.wait_for_end(running).error
    assert error is not None
    assert error.code is ErrorCode.ENGINE_UNAVAILABLE


@pytest.mark.parametrize(
    "rule",
    [
        {"death": "MPI worker is gone"},
        {"error": CUDA_ERROR.format("an illegal memory access was encountered")},
    ],
    ids=["await raises", "a fatal error"],
)
def test_fatal_error_fails_all_requests_logs_the_reason_and_ends_the_process(
    create_bench: CreateBench, rule: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    bench = create_bench(script={**script(**rule), "steps_per_s": 200}, engine={"max_batch_size": 10})
    numbers = [bench.submit(make_request(f"bystander {n}", prompt_ids=(n,), max_tokens=LONG)) for n in range(5)]
    bench.recorder.wait_for_token(numbers[0])
    started = time.monotonic()
    for number in (*numbers, bench.submit(make_request("victim"))):
        error = bench.recorder.wait_for_end(number).error
        assert error is not None
        assert error.code is ErrorCode.ENGINE_UNAVAILABLE
        assert error.retry_after_s
    assert time.monotonic() - started < 5
    with pytest.raises(PipelineError) as caught:
        bench.submit(make_request("late"))
    assert caught.value.code is ErrorCode.ENGINE_UNAVAILABLE
    assert bench.exited.wait(DEADLINE_S)
    assert bench.exits == [70]
    (line,) = [record.getMessage() for record in caplog.records if "the engine is dead" in record.getMessage()]
    assert next(iter(rule.values())) in line
    assert "\n" not in line
    assert bench.recorder.violations == []
