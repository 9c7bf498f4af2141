"""The TensorRT-LLM executor on the fake: the port's rules, finish reasons, cancellation, priorities."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from llm_pipeline.protocol.errors import ErrorCode
from llm_pipeline.protocol.messages import FinishReason, GenerationRequest, SamplingParams
from tests.support.executor_rules import CLOSING_RULES, DEADLINE_S, RULES, RuleBench
from tests.support.sample_requests import make_request
from tests.support.trtllm_bench import LONG, CreateBench, TrtllmBench, error_of, rule_bench, script


@pytest.mark.parametrize("rule", RULES + CLOSING_RULES)
def test_executor_rules(bench: TrtllmBench, rule: Callable[[RuleBench], None]) -> None:
    rule(rule_bench(bench))


@pytest.mark.parametrize("rule", RULES + CLOSING_RULES)
def test_executor_rules_with_bursts_and_an_empty_final_response(
    create_bench: CreateBench, rule: Callable[[RuleBench], None]
) -> None:
    rule(rule_bench(create_bench(script={"burst": 3, "has_empty_final": True})))


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
    create_bench: CreateBench,
    rule: dict[str, Any],
    token_ids: list[int],
    reason: FinishReason,
    has_empty_final: bool,
    burst: int,
) -> None:
    bench = create_bench(script={**script(**rule, burst=burst), "has_empty_final": has_empty_final})
    step = bench.end_of(make_request("one", stop_token_ids=(2,)))
    assert step.finish_reason is reason
    assert bench.token_ids("one") == token_ids


def test_time_limit_of_a_request_fails_it_with_504(create_bench: CreateBench) -> None:
    bench = create_bench(script=script(stalls=True))
    request = make_request()
    limited = GenerationRequest(request.key, request.prompt_ids, 8, request.sampling, time_limit_s=0.05)
    assert error_of(bench, limited).code is ErrorCode.DEADLINE_EXCEEDED


def test_request_that_the_engine_cancels_by_itself_may_be_retried(create_bench: CreateBench) -> None:
    bench = create_bench(script=script(finish="CANCELLED"))
    assert error_of(bench, make_request()).code is ErrorCode.ENGINE_UNAVAILABLE


def test_unknown_finish_reason_is_an_error(create_bench: CreateBench) -> None:
    bench = create_bench(script=script(finish="NOT_FINISHED"))
    assert error_of(bench, make_request()).code is ErrorCode.INTERNAL_ERROR


def test_exception_in_the_sink_does_not_stop_the_awaiter_thread(bench: TrtllmBench) -> None:
    bench.executor.close()
    raised = threading.Event()

    def sink(steps: Any) -> None:
        if not raised.is_set():
            raised.set()
            raise RuntimeError("a bug in the sink")
        bench.recorder(steps)

    bench.executor = bench.create(sink)
    bench.submit(make_request("first", max_tokens=3))
    assert raised.wait(DEADLINE_S)
    assert bench.end_of(make_request("second", max_tokens=3)).finish_reason is FinishReason.LENGTH


def test_cancelled_request_is_cancelled_upstream_once_by_its_id(bench: TrtllmBench) -> None:
    number = bench.submit(make_request(max_tokens=LONG))
    bench.recorder.wait_for_token(number)
    for _ in range(3):
        bench.executor.cancel(number)
    assert bench.recorder.wait_for_end(number).finish_reason is FinishReason.CANCELLED
    bench.executor.cancel(number)
    assert bench.fake.cancels == [1]


def test_cancelled_request_without_a_response_ends_after_the_cancel_timeout(
    create_bench: CreateBench, caplog: pytest.LogCaptureFixture
) -> None:
    bench = create_bench(script=script(stalls=True, ignores_cancel=True), trtllm_cancel_timeout_s=0.2)
    number = bench.submit(make_request())
    bench.executor.cancel(number)
    assert bench.recorder.wait_for_end(number).finish_reason is FinishReason.CANCELLED
    assert "did not end within" in caplog.text
    assert bench.end_of(make_request("next", prompt_ids=(1,))).finish_reason is FinishReason.LENGTH


def test_high_priority_request_is_decoded_first(create_bench: CreateBench) -> None:
    bench = create_bench(engine={"max_batch_size": 1})
    running = bench.submit(make_request("running", max_tokens=LONG))
    bench.recorder.wait_for_token(running)
    low = bench.submit(make_request("low", max_tokens=1))
    base = make_request("high", max_tokens=1)
    high = bench.submit(GenerationRequest(base.key, base.prompt_ids, 1, base.sampling, urgency=0.9))
    bench.executor.cancel(running)
    bench.recorder.wait_for_end(low)
    assert bench.recorder.outputs(high)[-1].is_final


def test_live_requests_with_equal_prompts_are_independent(bench: TrtllmBench) -> None:
    """Request ids are upstream's. NVIDIA's Python model uses the client's id, so requests can overwrite others."""
    numbers = [bench.submit(make_request(f"request {n}", max_tokens=LONG)) for n in range(2)]
    for number in numbers:
        bench.recorder.wait_for_token(number)
    bench.executor.cancel(numbers[0])
    assert bench.recorder.wait_for_end(numbers[0]).finish_reason is FinishReason.CANCELLED
    assert not any(output.is_final for output in bench.recorder.outputs(numbers[1]))


def test_seed_gives_the_same_tokens_alone_and_in_a_batch(bench: TrtllmBench) -> None:
    sampling = SamplingParams(is_greedy=False, temperature=0.7, top_p=0.9, seed=5)
    first, second = (make_request(name, max_tokens=20, sampling=sampling) for name in ("first", "second"))
    bench.end_of(first)
    others = [bench.submit(make_request(f"other {n}", prompt_ids=(n,), max_tokens=30)) for n in range(4)]
    bench.end_of(second)
    for number in others:
        bench.recorder.wait_for_end(number)
    assert bench.token_ids("first") == bench.token_ids("second")
