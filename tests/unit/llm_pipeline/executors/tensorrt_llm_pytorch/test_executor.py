"""The executor on the LLM API's stand-in, on both profiles: the port's rules, endings, cancellation, time limits."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from llm_pipeline.protocol.errors import ErrorCode
from llm_pipeline.protocol.messages import FinishReason, SamplingParams
from tests.support.executor_rules import CLOSING_RULES, RULES, RuleBench
from tests.support.sample_requests import make_request
from tests.support.trtllm_bench import LONG, CreateBench, error_of, rule_bench, script

VERSIONS = ["1.2.1", "1.3.0"]


def on(version: str, **more: Any) -> dict[str, Any]:
    """Returns arguments of a bench for a release; `more` are fields of its script."""
    return {"script": {"version": version, **more}, "engine": {"version": version}}


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.mark.parametrize("rule", RULES + CLOSING_RULES)
def test_executor_rules(create_bench: CreateBench, version: str, rule: Callable[[RuleBench], None]) -> None:
    rule(rule_bench(create_bench(**on(version))))


@pytest.mark.parametrize("rule", RULES + CLOSING_RULES)
def test_executor_rules_with_bursts_and_a_spawned_worker(
    create_bench: CreateBench, rule: Callable[[RuleBench], None]
) -> None:
    rule(rule_bench(create_bench(**on("1.3.0", burst=3), trtllm_single_process=False)))


@pytest.mark.parametrize(
    ("rule", "token_ids", "reason"),
    [
        ({"token_ids": [8, 9, 2]}, [8, 9, 2], FinishReason.STOP),
        ({"token_ids": [2]}, [2], FinishReason.STOP),
        ({"token_ids": [8, 3]}, [8, 3], FinishReason.STOP),
        ({"token_ids": [8, 9], "finish": "LENGTH"}, [8, 9], FinishReason.LENGTH),
    ],
    ids=["end token", "end token at once", "further stop token", "length"],
)
@pytest.mark.parametrize("burst", [1, 2], ids=["one by one", "several at once"])
def test_the_last_token_is_the_one_that_ends_a_request(
    create_bench: CreateBench,
    version: str,
    rule: dict[str, Any],
    token_ids: list[int],
    reason: FinishReason,
    burst: int,
) -> None:
    """TRTLLMSampler leaves the end token out of its output, TorchSampler does not: it is returned exactly once."""
    bench = create_bench(**on(version, **script(**rule, burst=burst)))
    output = bench.end_of(make_request("one", stop_token_ids=(2, 3)))
    assert output.finish_reason is reason
    assert bench.token_ids("one") == token_ids


def test_request_without_end_tokens_ends_by_length(create_bench: CreateBench, version: str) -> None:
    bench = create_bench(**on(version, **script(token_ids=[0, 2, 0])))
    assert bench.end_of(make_request("one", max_tokens=4)).finish_reason is FinishReason.LENGTH
    assert bench.token_ids("one")[:3] == [0, 2, 0]


def test_time_limit_fails_a_request_with_504_at_its_time(create_bench: CreateBench, version: str) -> None:
    """Upstream has no time limit, and may not even answer the abort."""
    bench = create_bench(**on(version, **script(stalls=True, ignores_cancel=True)))
    started = time.monotonic()
    assert error_of(bench, replace(make_request(), time_limit_s=0.05)).code is ErrorCode.DEADLINE_EXCEEDED
    assert time.monotonic() - started < 5
    bench.recorder.wait_for(lambda: bool(bench.fake.cancels))


def test_request_that_is_faster_than_its_time_limit_is_not_aborted(create_bench: CreateBench) -> None:
    bench = create_bench()
    assert bench.end_of(replace(make_request(), time_limit_s=0.5)).finish_reason is FinishReason.LENGTH
    time.sleep(0.6)  # past the limit
    assert bench.fake.cancels == []


def test_cancelled_request_without_an_answer_ends_after_the_cancel_timeout(
    create_bench: CreateBench, caplog: pytest.LogCaptureFixture
) -> None:
    bench = create_bench(**on("1.2.1", **script(stalls=True, ignores_cancel=True)), trtllm_cancel_timeout_s=0.2)
    number = bench.submit(make_request())
    bench.executor.cancel(number)
    assert bench.recorder.wait_for_end(number).finish_reason is FinishReason.CANCELLED
    assert "did not end within" in caplog.text
    assert bench.end_of(make_request("next", prompt_ids=(1,))).finish_reason is FinishReason.LENGTH


def test_cancelled_request_is_aborted_once(create_bench: CreateBench) -> None:
    bench = create_bench()
    number = bench.submit(make_request(max_tokens=LONG))
    bench.recorder.wait_for_token(number)
    for _ in range(3):
        bench.executor.cancel(number)
    assert bench.recorder.wait_for_end(number).finish_reason is FinishReason.CANCELLED
    assert len(bench.fake.cancels) == 1


def test_request_that_the_engine_cancels_by_itself_may_be_retried(create_bench: CreateBench, version: str) -> None:
    bench = create_bench(**on(version, **script(finish="CANCELLED")))
    assert error_of(bench, make_request()).code is ErrorCode.ENGINE_UNAVAILABLE


def test_seed_gives_the_same_tokens_alone_and_in_a_batch(create_bench: CreateBench, version: str) -> None:
    bench = create_bench(**on(version))
    sampling = SamplingParams(is_greedy=False, temperature=0.7, top_p=0.9, seed=2**64 - 1)
    first, second = (make_request(name, max_tokens=20, sampling=sampling) for name in ("first", "second"))
    bench.end_of(first)
    others = [bench.submit(make_request(f"other {n}", prompt_ids=(n,), max_tokens=30)) for n in range(4)]
    bench.end_of(second)
    for number in others:
        bench.recorder.wait_for_end(number)
    assert bench.token_ids("first") == bench.token_ids("second")


def test_executor_shuts_the_llm_down_and_leaves_no_thread(create_bench: CreateBench) -> None:
    import threading

    bench = create_bench()
    bench.end_of(make_request())
    bench.executor.close()
    assert bench.fake.is_down
    names = {thread.name for thread in threading.enumerate()}
    assert not names & {"tensorrt-llm-loop", "tensorrt-llm-awaiter"}


def test_more_urgent_request_is_decoded_first(create_bench: CreateBench, version: str) -> None:
    """The queue in front of the LLM knows urgencies; the LLM's own is by arrival."""
    bench = create_bench(script={"version": version}, engine={"version": version, "max_batch_size": 1})
    running = bench.submit(make_request("running", max_tokens=LONG))
    bench.recorder.wait_for_token(running)
    others = [bench.submit(make_request(f"other {n}", max_tokens=1)) for n in range(6)]
    urgent = bench.submit(replace(make_request("urgent", max_tokens=1), urgency=0.9))
    bench.executor.cancel(running)
    for number in (*others, urgent):
        bench.recorder.wait_for_end(number)
    assert bench.recorder.ended.index(urgent) < bench.recorder.ended.index(others[-1])
