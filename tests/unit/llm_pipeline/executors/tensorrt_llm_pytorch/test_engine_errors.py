"""Errors of the LLM API's stand-in: of one request, of one step, and those that end the process."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from llm_pipeline.executors.tensorrt_llm.engine_health import MAX_FAILED_ROUNDS
from llm_pipeline.protocol.engine_metrics import FAMILIES
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.protocol.messages import FinishReason, Guide, GuideType
from tests.support.executor_rules import DEADLINE_S
from tests.support.sample_requests import make_request
from tests.support.trtllm_bench import LONG, CreateBench, error_of, script
from tests.support.waiting import wait_until


@pytest.mark.parametrize("rule", [{"error": "an error of one request"}, {"breaks": True}], ids=["error", "unreadable"])
@pytest.mark.parametrize("is_single", [True, False], ids=["in process", "spawned"])
def test_error_fails_only_its_request(create_bench: CreateBench, rule: dict[str, Any], is_single: bool) -> None:
    bench = create_bench(script=script(token_ids=[8], **rule), trtllm_single_process=is_single)
    other = bench.submit(make_request("other", prompt_ids=(1, 1), max_tokens=200))
    error = error_of(bench, make_request("broken"))
    assert error.code is ErrorCode.INTERNAL_ERROR
    assert "of one request" not in error.message
    assert bench.recorder.wait_for_end(other).finish_reason is FinishReason.LENGTH
    assert bench.end_of(make_request("next", prompt_ids=(1, 2))).finish_reason is FinishReason.LENGTH
    assert bench.exits == []


def test_many_unreadable_results_are_no_reason_to_end_the_process(create_bench: CreateBench) -> None:
    """Upstream's assertions about logprobs can be of one client's making; each fails its own request."""
    bench = create_bench(script=script(breaks=True))
    for number in range(2 * MAX_FAILED_ROUNDS):
        assert error_of(bench, make_request(f"broken {number}")).code is ErrorCode.INTERNAL_ERROR
    assert bench.exits == []
    wait_until(lambda: len(bench.fake.cancels) == 2 * MAX_FAILED_ROUNDS, limit_s=DEADLINE_S, what="all are aborted")


@pytest.mark.parametrize("is_single", [True, False], ids=["in process", "spawned"])
def test_request_that_the_worker_refuses_is_the_clients_error(create_bench: CreateBench, is_single: bool) -> None:
    """In the worker's own process generate_async raises it; else it comes as a response like others."""
    bench = create_bench(script=script(enqueue_error="Assertion failed: no"), trtllm_single_process=is_single)
    code = error_of(bench, make_request()).code
    assert code is (ErrorCode.VALUE_OUT_OF_RANGE if is_single else ErrorCode.INTERNAL_ERROR)
    assert bench.end_of(make_request("next", prompt_ids=(1,))).finish_reason is FinishReason.LENGTH


def test_guide_that_the_engine_refuses_is_the_clients_error(
    create_bench: CreateBench, caplog: pytest.LogCaptureFixture
) -> None:
    """The compiler's text may have parts of the guide, which is the client's, and any words in it."""
    bench = create_bench(script=script(error="Guided decoding error: illegal memory access was encountered, a secret"))
    error = error_of(bench, make_request())
    assert error.code is ErrorCode.VALUE_OUT_OF_RANGE
    assert "secret" not in error.message + caplog.text
    assert bench.exits == []


@pytest.mark.parametrize(
    "message",
    [
        "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be asynchronously reported",
        "CUDA error: unspecified launch failure",
    ],
)
def test_error_that_leaves_the_gpu_unusable_is_fatal(create_bench: CreateBench, message: str) -> None:
    bench = create_bench(script=script(error=message))
    other = bench.submit(make_request("other", prompt_ids=(1,), max_tokens=LONG))
    bench.recorder.wait_for_token(other)
    assert error_of(bench, make_request()).code is ErrorCode.ENGINE_UNAVAILABLE
    end = bench.recorder.wait_for_end(other)
    assert end.error is not None
    assert end.error.code is ErrorCode.ENGINE_UNAVAILABLE
    assert bench.exited.wait(DEADLINE_S)
    assert bench.exits == [70]


def test_engine_that_fails_every_step_is_dead(create_bench: CreateBench) -> None:
    bench = create_bench(script=script(death="an unknown error in every step"))
    codes = [error_of(bench, make_request(f"request {n}")).code for n in range(MAX_FAILED_ROUNDS)]
    assert set(codes) == {ErrorCode.INTERNAL_ERROR}
    assert bench.exited.wait(DEADLINE_S)


def test_error_of_the_background_ends_all_requests_and_the_process(
    create_bench: CreateBench, caplog: pytest.LogCaptureFixture
) -> None:
    """Upstream shuts the LLM down before it raises anything but RequestError."""
    bench = create_bench()
    numbers = [bench.submit(make_request(f"request {n}", prompt_ids=(n,), max_tokens=LONG)) for n in range(3)]
    for number in numbers:
        bench.recorder.wait_for_token(number)
    bench.fake.background_errors.append(OSError("the result thread died"))
    for number in numbers:
        end = bench.recorder.wait_for_end(number)
        assert end.error is not None
        assert end.error.code is ErrorCode.ENGINE_UNAVAILABLE
    assert bench.exited.wait(DEADLINE_S)
    assert "the result thread died" in caplog.text
    with pytest.raises(PipelineError) as caught:
        bench.submit(make_request("late"))
    assert caught.value.code is ErrorCode.ENGINE_UNAVAILABLE


def test_engine_without_progress_is_dead(create_bench: CreateBench) -> None:
    bench = create_bench(script={**script(hangs_engine=True), "stats": "none"}, trtllm_hang_timeout_s=0.3)
    assert error_of(bench, make_request()).code is ErrorCode.ENGINE_UNAVAILABLE
    assert bench.exited.wait(DEADLINE_S)


def test_unreadable_statistics_are_logged_once_and_fail_no_request(
    create_bench: CreateBench, caplog: pytest.LogCaptureFixture
) -> None:
    bench = create_bench(script={"stats": "unreadable", "steps_per_s": 100})
    assert bench.end_of(make_request(max_tokens=150)).finish_reason is FinishReason.LENGTH
    assert caplog.text.count("statistics can't be read") == 1


def test_statistics_have_the_gauges_of_the_engine_runtime(create_bench: CreateBench) -> None:
    bench = create_bench(script={"steps_per_s": 100})
    number = bench.submit(make_request(max_tokens=LONG))
    bench.recorder.wait_for(lambda: "kv_cache_used_blocks" in bench.executor.stats().gauges)
    gauges = bench.executor.stats().gauges
    assert gauges["active_requests"] == 1
    assert 0 < gauges["kv_cache_used_share"] < 1
    assert gauges.keys() <= {number for family in FAMILIES for number in family.series}
    bench.executor.cancel(number)
    bench.recorder.wait_for_end(number)


def test_guides_of_every_kind_reach_upstream(
    create_bench: CreateBench, byte_level_library: tokenizers.Tokenizer, tmp_path: Path
) -> None:
    byte_level_library.save(str(tmp_path / "tokenizer.json"))
    bench = create_bench(engine={"tokenizer": tmp_path / "tokenizer.json"}, trtllm_guided_decoding="xgrammar")
    guides = {
        "json_object": Guide(GuideType.JSON),
        "json": Guide(GuideType.JSON_SCHEMA, '{"type": "object"}'),
        "regex": Guide(GuideType.REGEX, "a+"),
        "grammar": Guide(GuideType.EBNF_GRAMMAR, "root ::= [a-z]+"),
        "structural_tag": Guide(GuideType.STRUCTURAL_TAG, '{"type": "structural_tag"}'),
    }
    for name, guide in guides.items():
        result, _ = bench.sent(replace(make_request(max_tokens=2, stop_token_ids=(2,)), guide=guide))
        sent = result.sampling_params.guided_decoding
        assert getattr(sent, name) == (guide.source or True)
    assert bench.fake.ignored_fields == set()
