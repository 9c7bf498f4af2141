"""The TensorRT-LLM executor on the stand-in: rules, endings, cancelling, errors, death, metrics, ranks."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llm_pipeline.executors.tensorrt_llm import executor as executor_module
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.protocol.messages import FinishReason, GenerationRequest
from tests.support.executor_rules import CLOSING_RULES, DEADLINE_S, RULES, RuleBench
from tests.support.sample_requests import make_request
from tests.support.trtllm_bench import LONG, TrtllmBench, rule_bench, trtllm_bench

CreateBench = Callable[..., TrtllmBench]
PROMPT = [5, 6, 7]
CUDA_ERROR = (
    "Encountered an error in forwardAsync function: [TensorRT-LLM][ERROR] CUDA runtime error in "
    "::cudaEventRecord(get(), stream): {}"
)
# What stands behind each message (cpp/tensorrt_llm/common/tllmException.cpp), with words of other errors in it.
BACKTRACE = """ (/src/tensorrt_llm/cpp/tensorrt_llm/executor/executorImpl.cpp:1203)
1       0x7f7b3cc2d65c void tensorrt_llm::common::check<cudaError>(cudaError, char const*, char const*, int) + 92
2       0x7f7b3d7b74f2 tensorrt_llm::executor::Executor::Impl::shutdown(std::queue<int>::size_type, int prefixIdx) + 9
3       0x7f7b3d7b74f3 Shutdown called, Maximum queue size of 1 has been reached, misaligned address"""


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[CreateBench]:
    with trtllm_bench(tmp_path) as create:
        yield create


def script(**rule: Any) -> dict[str, Any]:
    """A script with one rule, for make_request's prompt."""
    return {"rules": [{"prompt_ids": PROMPT, **rule}]}


def error_of(bench: TrtllmBench, request: GenerationRequest) -> PipelineError:
    error = bench.end_of(request).error
    assert error is not None
    return error


@pytest.mark.parametrize("rule", RULES + CLOSING_RULES)
def test_the_executors_rules(bench: CreateBench, rule: Callable[[RuleBench], None]) -> None:
    rule(rule_bench(bench()))


@pytest.mark.parametrize("rule", RULES + CLOSING_RULES)
def test_the_executors_rules_with_bursts_and_an_empty_final_response(
    bench: CreateBench, rule: Callable[[RuleBench], None]
) -> None:
    rule(rule_bench(bench(script={"burst": 3, "has_empty_final": True})))


@pytest.mark.parametrize(
    ("rule", "token_ids", "reason"),
    [
        ({"token_ids": [8, 9], "finish": "END_ID"}, [8, 9, 2], FinishReason.STOP),
        ({"token_ids": [], "finish": "END_ID"}, [2], FinishReason.STOP),
        ({"token_ids": [8, 9], "finish": "STOP_WORDS"}, [8, 9], FinishReason.STOP),
        ({"token_ids": [8, 9], "finish": "LENGTH"}, [8, 9], FinishReason.LENGTH),
    ],
    ids=["END_ID", "END_ID at once", "STOP_WORDS", "LENGTH"],
)
@pytest.mark.parametrize("has_empty_final", [False, True], ids=["with tokens", "empty final"])
@pytest.mark.parametrize("burst", [1, 2], ids=["one by one", "several at once"])
def test_finish_reasons(
    bench: CreateBench,
    rule: dict[str, Any],
    token_ids: list[int],
    reason: FinishReason,
    has_empty_final: bool,
    burst: int,
) -> None:
    made = bench(script={**script(**rule, burst=burst), "has_empty_final": has_empty_final})
    step = made.end_of(make_request("one", stop_token_ids=(2,)))
    assert step.finish_reason is reason
    assert made.recorder.token_ids("one") == token_ids


def test_the_requests_own_time_limit_ends_it_with_504(bench: CreateBench) -> None:
    made = bench(script=script(stalls=True))
    request = make_request()
    limited = GenerationRequest(request.key, request.prompt_ids, 8, request.sampling, time_limit_s=0.05)
    assert error_of(made, limited).code is ErrorCode.DEADLINE_EXCEEDED


def test_a_request_that_the_engine_cancels_unasked_may_be_retried(bench: CreateBench) -> None:
    made = bench(script=script(finish="CANCELLED"))
    assert error_of(made, make_request()).code is ErrorCode.ENGINE_UNAVAILABLE


def test_an_ending_without_a_known_reason_is_an_error_not_a_guess(bench: CreateBench) -> None:
    made = bench(script=script(finish="NOT_FINISHED"))
    assert error_of(made, make_request()).code is ErrorCode.INTERNAL_ERROR


@pytest.mark.parametrize(
    "rule", [{"error": "Encountered an error in forwardAsync function"}, {"breaks": True}], ids=["error", "unreadable"]
)
def test_an_error_on_one_response_ends_that_request_alone(bench: CreateBench, rule: dict[str, Any]) -> None:
    made = bench(script=script(token_ids=[8], **rule))
    other = made.submit(make_request("other", prompt_ids=(1, 1), max_tokens=200))
    error = error_of(made, make_request("broken"))
    assert error.code is ErrorCode.INTERNAL_ERROR
    assert "forwardAsync" not in error.message
    assert made.recorder.wait_for_end(other).finish_reason is FinishReason.LENGTH
    assert made.end_of(make_request("next", prompt_ids=(1, 2))).finish_reason is FinishReason.LENGTH


def test_a_request_whose_response_could_not_be_read_is_cancelled_upstream(bench: CreateBench) -> None:
    made = bench(script=script(breaks=True))
    made.end_of(make_request())
    deadline = time.monotonic() + DEADLINE_S
    while not made.fake.cancels and time.monotonic() < deadline:
        time.sleep(0.01)
    assert made.fake.cancels == [1]


def test_a_sink_that_raises_does_not_end_the_awaiter(bench: CreateBench) -> None:
    made = bench()
    made.executor.close()
    raised = threading.Event()

    def sink(steps: Any) -> None:
        if not raised.is_set():
            raised.set()
            raise RuntimeError("not mine")
        made.recorder(steps)

    made.executor = made.create(sink)
    made.submit(make_request("first", max_tokens=3))
    assert raised.wait(DEADLINE_S)
    assert made.end_of(make_request("second", max_tokens=3)).finish_reason is FinishReason.LENGTH


def test_a_cancelled_request_is_cancelled_upstream_once_and_by_its_id(bench: CreateBench) -> None:
    made = bench()
    key = made.submit(make_request(max_tokens=LONG))
    made.recorder.wait_for_token(key)
    for _ in range(3):
        made.executor.cancel(key)
    assert made.recorder.wait_for_end(key).finish_reason is FinishReason.CANCELLED
    made.executor.cancel(key)
    assert made.fake.cancels == [1]


def test_a_cancelled_request_that_never_ends_is_given_up(bench: CreateBench, caplog: pytest.LogCaptureFixture) -> None:
    made = bench(script=script(stalls=True, ignores_cancel=True), trtllm_cancel_timeout_s=0.2)
    key = made.submit(make_request())
    made.executor.cancel(key)
    assert made.recorder.wait_for_end(key).finish_reason is FinishReason.CANCELLED
    assert "did not end within" in caplog.text
    assert made.end_of(make_request("next", prompt_ids=(1,))).finish_reason is FinishReason.LENGTH


@pytest.mark.parametrize(
    ("words", "code"),
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
def test_an_error_response_has_the_status_of_its_fault(bench: CreateBench, words: str, code: ErrorCode) -> None:
    made = bench(script=script(error=words + BACKTRACE))
    error = error_of(made, make_request())
    assert error.code is code
    assert not set(error.message.split()) & {"[TensorRT-LLM][ERROR]", "forwardSync", "TRTGptModel"}
    assert made.end_of(make_request("next", prompt_ids=(1,))).finish_reason is FinishReason.LENGTH


@pytest.mark.parametrize(
    "words",
    [
        *(
            CUDA_ERROR.format(said)
            for said in (
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
    ],
)
def test_an_error_that_leaves_the_gpu_unusable_is_the_engines_death(bench: CreateBench, words: str) -> None:
    made = bench(script=script(error=words + BACKTRACE))
    assert error_of(made, make_request()).code is ErrorCode.ENGINE_UNAVAILABLE
    assert made.exited.wait(DEADLINE_S)


def test_an_engine_that_fails_everybody_is_dead_whatever_it_says(bench: CreateBench) -> None:
    made = bench(script=script(error="words that nobody knows"))
    codes = [error_of(made, make_request(f"request {n}")).code for n in range(executor_module._FAILED_ROUNDS_LIMIT)]
    assert set(codes) == {ErrorCode.INTERNAL_ERROR}
    assert made.exited.wait(DEADLINE_S)
    with pytest.raises(PipelineError) as caught:
        made.submit(make_request("late"))
    assert caught.value.code is ErrorCode.ENGINE_UNAVAILABLE


def test_an_engine_that_answers_in_between_is_not_dead(bench: CreateBench) -> None:
    made = bench(script=script(error="words that nobody knows"))
    for number in range(2 * executor_module._FAILED_ROUNDS_LIMIT):
        assert error_of(made, make_request(f"bad {number}")).code is ErrorCode.INTERNAL_ERROR
        made.end_of(make_request(f"good {number}", prompt_ids=(1,), max_tokens=1))
    assert made.exits == []


def test_a_full_queue_upstream_is_429(bench: CreateBench) -> None:
    made = bench(trtllm_max_queue_size=1, engine={"max_batch_size": 1})
    running = made.submit(make_request("running", max_tokens=LONG))
    made.recorder.wait_for_token(running)
    made.submit(make_request("waiting", max_tokens=LONG))
    with pytest.raises(PipelineError) as caught:
        made.submit(make_request("one too many"))
    assert caught.value.code is ErrorCode.QUEUE_FULL
    assert caught.value.retry_after_s


def test_what_upstream_raises_on_enqueue_otherwise_reaches_decode_as_it_is(bench: CreateBench) -> None:
    """decode logs it and answers 500; see test_decode."""
    made = bench(script=script(enqueue_error="[TensorRT-LLM][ERROR] Assertion failed: something" + BACKTRACE))
    with pytest.raises(RuntimeError, match="something"):
        made.submit(make_request())
    assert made.executor.stats().queued_requests == 0
    assert made.end_of(make_request("next", prompt_ids=(1,))).finish_reason is FinishReason.LENGTH


@pytest.mark.parametrize(
    "words",
    [
        "[TensorRT-LLM][ERROR] Assertion failed: Shutdown called, cannot enqueue requests" + BACKTRACE,
        "words that nobody knows, from an engine that says it takes no requests",
    ],
    ids=["upstream's words", "other words"],
)
def test_an_engine_that_takes_requests_no_more_is_dead(bench: CreateBench, words: str) -> None:
    made = bench(script=script(enqueue_error=words))
    if "nobody" in words:
        made.executor._engine._executor.can_enqueue_requests = lambda: False
    running = made.submit(make_request("running", prompt_ids=(1,), max_tokens=LONG))
    with pytest.raises(PipelineError) as caught:
        made.submit(make_request("refused"))
    assert caught.value.code is ErrorCode.ENGINE_UNAVAILABLE
    error = made.recorder.wait_for_end(running).error
    assert error is not None
    assert error.code is ErrorCode.ENGINE_UNAVAILABLE


@pytest.mark.parametrize(
    "rule",
    [
        {"death": "MPI worker is gone"},
        {"error": CUDA_ERROR.format("an illegal memory access was encountered")},
    ],
    ids=["await raises", "a deadly error"],
)
def test_a_dead_engine_fails_all_at_once_says_why_refuses_more_and_ends_the_process(
    bench: CreateBench, rule: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    made = bench(script={**script(**rule), "steps_per_s": 200}, engine={"max_batch_size": 10})
    keys = [made.submit(make_request(f"bystander {n}", prompt_ids=(n,), max_tokens=LONG)) for n in range(5)]
    made.recorder.wait_for_token(keys[0])
    started = time.monotonic()
    for key in (*keys, made.submit(make_request("victim"))):
        error = made.recorder.wait_for_end(key).error
        assert error is not None
        assert error.code is ErrorCode.ENGINE_UNAVAILABLE
        assert error.retry_after_s
    assert time.monotonic() - started < 5
    with pytest.raises(PipelineError) as caught:
        made.submit(make_request("late"))
    assert caught.value.code is ErrorCode.ENGINE_UNAVAILABLE
    assert made.exited.wait(DEADLINE_S)
    assert made.exits == [70]
    (line,) = [record.getMessage() for record in caplog.records if "the engine is dead" in record.getMessage()]
    assert next(iter(rule.values())) in line
    assert "\n" not in line
    assert made.recorder.violations == []


def test_an_engine_without_a_sign_of_life_is_dead(bench: CreateBench, monkeypatch: pytest.MonkeyPatch) -> None:
    made = bench(trtllm_hang_timeout_s=0.3)
    made.fake.lock.acquire()  # everything inside the engine stands still, awaiting included, until this is given back
    try:
        monkeypatch.setattr(type(made.fake), "await_responses", lambda self, timeout: time.sleep(0.01) or [])
        monkeypatch.setattr(type(made.fake), "enqueue", lambda self, request: 1)
        made.executor._engine.newest_stats = lambda: None
        time.sleep(0.1)
    finally:
        made.fake.lock.release()
    error = error_of(made, make_request())
    assert error.code is ErrorCode.ENGINE_UNAVAILABLE
    assert made.exited.wait(DEADLINE_S)


def test_an_idle_engine_owes_no_sign_of_life(bench: CreateBench) -> None:
    made = bench(script=script(stalls=True), trtllm_hang_timeout_s=1.0)
    made.executor._engine.newest_stats = lambda: None
    time.sleep(1.2)
    key = made.submit(make_request())
    time.sleep(0.2)  # several ticks of the clocks
    assert made.recorder.steps(key) == []
    made.executor.cancel(key)
    assert made.recorder.wait_for_end(key).finish_reason is FinishReason.CANCELLED
    assert made.exits == []


def test_close_ends_the_requests_of_an_engine_that_hangs(bench: CreateBench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor_module, "_CLOSE_LIMIT_S", 0.1)
    made = bench(script=script(stalls=True))
    hangs, released = threading.Event(), threading.Event()

    def hang(_self: Any, _timeout: Any) -> list[Any]:
        hangs.set()
        released.wait(DEADLINE_S)
        return []

    monkeypatch.setattr(type(made.fake), "await_responses", hang)
    key = made.submit(make_request())
    assert hangs.wait(DEADLINE_S)
    made.executor.close()
    assert made.recorder.wait_for_end(key).finish_reason is FinishReason.CANCELLED
    monkeypatch.undo()
    released.set()


def test_close_does_not_wait_for_an_engine_that_does_not_come_down(
    bench: CreateBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor_module, "_CLOSE_LIMIT_S", 0.2)
    monkeypatch.setattr(executor_module, "_SHUTDOWN_LIMIT_S", 0.2)
    made = bench(script={**script(stalls=True, ignores_cancel=True), "shutdown_s": 20.0})
    key = made.submit(make_request())
    started = time.monotonic()
    made.executor.close()
    assert made.recorder.wait_for_end(key).finish_reason is FinishReason.CANCELLED
    assert time.monotonic() - started < 5


def test_iteration_stats_become_gauges(bench: CreateBench) -> None:
    made = bench()
    key = made.submit(make_request(max_tokens=LONG))
    made.recorder.wait_for(lambda: made.executor.stats().gauges.get("kv_cache_used_blocks", 0) > 0)
    gauges = made.executor.stats().gauges
    assert gauges["kv_cache_max_blocks"] == 1024
    assert gauges["active_requests"] == gauges["generation_requests"] == 1
    assert gauges["max_active_requests"] == 3
    made.executor.cancel(key)


def test_statistics_that_can_not_be_read_cost_no_request(bench: CreateBench, caplog: pytest.LogCaptureFixture) -> None:
    made = bench()
    made.executor._engine._executor.get_latest_iteration_stats = lambda: [object()]
    assert made.end_of(make_request(max_tokens=500)).finish_reason is FinishReason.LENGTH
    assert caplog.text.count("statistics can't be read") == 1
    assert logging.ERROR in {record.levelno for record in caplog.records}


def test_a_rank_that_may_not_enqueue_waits_in_shutdown_and_answers_nothing(bench: CreateBench) -> None:
    made = bench(script={"is_leader": False})
    with pytest.raises(PipelineError) as caught:
        made.executor.submit(make_request())
    assert caught.value.code is ErrorCode.ENGINE_UNAVAILABLE
    made.executor.cancel("request")
    assert made.executor.stats().active_requests == 0
    follower = made.executor._thread
    assert follower.is_alive(), "blocked in upstream's shutdown"
    made.fake.released.set()
    follower.join(DEADLINE_S)
    assert not follower.is_alive()
    assert made.fake.is_down
    assert made.fake.requests == []


def test_high_priority_goes_first(bench: CreateBench) -> None:
    made = bench(engine={"max_batch_size": 1})
    running = made.submit(make_request("running", max_tokens=LONG))
    made.recorder.wait_for_token(running)
    low = made.submit(make_request("low", max_tokens=1))
    base = make_request("high", max_tokens=1)
    high = made.submit(GenerationRequest(base.key, base.prompt_ids, 1, base.sampling, urgency=0.9))
    made.executor.cancel(running)
    made.recorder.wait_for_end(low)
    assert made.recorder.steps(high)[-1].is_final
