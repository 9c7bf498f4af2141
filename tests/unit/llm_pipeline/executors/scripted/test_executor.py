"""The scripted executor: the port's rules, its scripts and its pace."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from llm_pipeline.executors.scripted.executor import ScriptedExecutor
from llm_pipeline.executors.scripted.load import load_executor
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.protocol.messages import EngineStep, FinishReason, SamplingParams
from llm_pipeline.runtime.settings import PipelineSettings
from tests.support.executor_rules import CLOSING_RULES, DEADLINE_S, RULES, RuleBench, StepRecorder
from tests.support.sample_requests import make_manifest, make_request

Rule = Callable[[RuleBench], None]
MAX_ACTIVE = 3
LONG = 10**9


@pytest.fixture
def scripted(tmp_path: Path) -> Iterator[Callable[..., RuleBench]]:
    """Creates an executor with these scripts and settings; fast by default."""
    vocabulary = {"Ġthe": 3, "Ġfox": 4, "Ġruns": 5, "ing": 6, "Ġ1": 7}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}}))
    benches: list[RuleBench] = []

    def create(scripts: list[dict[str, Any]] | None = None, **settings: Any) -> RuleBench:
        settings = {"scripted_steps_per_s": 2000, "scripted_max_active": MAX_ACTIVE, **settings}
        if scripts is not None:
            settings["scripted_file"] = tmp_path / "scripts.json"
            settings["scripted_file"].write_text(json.dumps(scripts))
        pipeline = PipelineSettings(engine_dir=tmp_path, executor="scripted", **settings)
        benches.append(
            RuleBench(lambda sink: load_executor(pipeline, make_manifest(), sink), long=LONG, max_active=MAX_ACTIVE)
        )
        return benches[-1]

    yield create
    for bench in benches:
        bench.executor.close()


@pytest.mark.parametrize("rule", RULES + CLOSING_RULES)
def test_executor_rules(scripted: Callable[..., RuleBench], rule: Rule) -> None:
    rule(scripted())


@pytest.mark.parametrize("rule", RULES + CLOSING_RULES)
def test_executor_rules_at_full_speed(scripted: Callable[..., RuleBench], rule: Rule) -> None:
    rule(scripted(scripted_steps_per_s=0))


def test_synthetic_tokens_are_words_and_depend_on_the_prompt(scripted: Callable[..., RuleBench]) -> None:
    bench = scripted()
    first, second, other = (bench.submit(max_tokens=6, prompt_ids=ids) for ids in ((1, 2), (1, 2), (1, 3)))
    for number in (first, second, other):
        bench.end_of(number)
    assert set(bench.recorder.token_ids(first)) == {3, 4, 5}
    assert bench.recorder.token_ids(first) == bench.recorder.token_ids(second) != bench.recorder.token_ids(other)


@pytest.mark.parametrize(
    ("script", "max_tokens", "token_ids", "reason"),
    [
        ({"token_ids": [7, 8, 9]}, 10, [7, 8, 9], FinishReason.STOP),
        ({"token_ids": [7, 8, 9], "finish": "length"}, 10, [7, 8, 9], FinishReason.LENGTH),
        ({"token_ids": [7, 8, 9]}, 2, [7, 8], FinishReason.LENGTH),
        ({"token_ids": [7, 8, 9]}, 3, [7, 8, 9], FinishReason.LENGTH),
        ({"token_ids": [7, 8, 9], "finish": "stop"}, 3, [7, 8, 9], FinishReason.STOP),
        ({"token_ids": [7, 8, 9], "finish": "stop"}, 2, [7, 8], FinishReason.LENGTH),
        ({}, 10, [], FinishReason.STOP),
    ],
    ids=["to the end", "with a finish", "cut", "just full", "stop at the limit", "cut before its stop", "empty"],
)
def test_script_is_replayed(
    scripted: Callable[..., RuleBench],
    script: dict[str, Any],
    max_tokens: int,
    token_ids: list[int],
    reason: FinishReason,
) -> None:
    bench = scripted([script])
    number = bench.submit(max_tokens=max_tokens)
    assert bench.end_of(number).finish_reason is reason
    assert bench.recorder.token_ids(number) == token_ids


def test_script_can_fail_a_request(scripted: Callable[..., RuleBench]) -> None:
    bench = scripted([{"token_ids": [7], "error": "out of order"}])
    number = bench.submit(max_tokens=10)
    error = bench.end_of(number).error
    assert error is not None
    assert error.code is ErrorCode.INTERNAL_ERROR
    assert bench.recorder.token_ids(number) == [7]


def test_script_can_stall_until_the_request_is_cancelled(scripted: Callable[..., RuleBench]) -> None:
    bench = scripted([{"prompt_ids": [1], "token_ids": [7], "stall": True}])
    stalled, other = bench.submit(prompt_ids=(1,)), bench.submit(max_tokens=50)
    bench.end_of(other)
    assert [output.is_final for output in bench.recorder.outputs(stalled)] == [False]
    bench.executor.cancel(stalled)
    assert bench.end_of(stalled).finish_reason is FinishReason.CANCELLED


def test_first_script_that_matches_the_prompt_is_replayed(scripted: Callable[..., RuleBench]) -> None:
    bench = scripted([{"prompt_ids": [1], "token_ids": [7]}, {"prompt_ids": [2], "token_ids": [8]}, {"token_ids": [9]}])
    numbers = [bench.submit(max_tokens=5, prompt_ids=ids) for ids in ((1,), (2,), (3,))]
    for number in numbers:
        bench.end_of(number)
    assert [bench.recorder.token_ids(number) for number in numbers] == [[7], [8], [9]]


def test_invalid_script_file_stops_the_start(scripted: Callable[..., RuleBench]) -> None:
    with pytest.raises(ValidationError, match="tokens"):
        scripted([{"tokens": [7]}])


def test_pace_is_not_exceeded(scripted: Callable[..., RuleBench]) -> None:
    bench = scripted(scripted_steps_per_s=100)
    started = time.monotonic()
    numbers = [bench.submit(max_tokens=12) for _ in range(MAX_ACTIVE)]
    for number in numbers:
        bench.end_of(number)
    assert time.monotonic() - started >= 0.1  # the first two steps may come together; no upper bound on a busy machine


def test_close_does_not_wait_for_a_slow_pace(scripted: Callable[..., RuleBench]) -> None:
    bench = scripted(scripted_steps_per_s=0.01)
    number = bench.submit()
    bench.recorder.wait_for_token(number)
    started = time.monotonic()
    bench.executor.close()
    assert bench.end_of(number).finish_reason is FinishReason.CANCELLED
    assert time.monotonic() - started < 4


@pytest.mark.parametrize(
    ("stop_token_ids", "min_tokens", "token_ids", "reason"),
    [
        ((8,), 0, [7, 8], FinishReason.STOP),
        ((8,), 1, [7, 8], FinishReason.STOP),
        ((8,), 2, [7, 8, 9, 8], FinishReason.STOP),
        ((8,), 4, [7, 8, 9, 8, 9], FinishReason.LENGTH),
        ((), 0, [7, 8, 9, 8, 9], FinishReason.LENGTH),
    ],
    ids=["at once", "just allowed", "the second one", "none left", "ignored"],
)
def test_stop_token_ends_a_request_after_min_tokens(
    scripted: Callable[..., RuleBench],
    stop_token_ids: tuple[int, ...],
    min_tokens: int,
    token_ids: list[int],
    reason: FinishReason,
) -> None:
    bench = scripted([{"token_ids": [7, 8, 9, 8, 9], "finish": "length"}])
    number = bench.submit(max_tokens=9, stop_token_ids=stop_token_ids, sampling=SamplingParams(min_tokens=min_tokens))
    assert bench.end_of(number).finish_reason is reason
    assert bench.recorder.token_ids(number) == token_ids


def test_synthetic_words_can_be_stop_tokens(scripted: Callable[..., RuleBench]) -> None:
    bench = scripted()
    number = bench.submit(max_tokens=9, stop_token_ids=(3, 4, 5))
    assert bench.end_of(number).finish_reason is FinishReason.STOP
    assert len(bench.recorder.token_ids(number)) == 1


def test_waiting_requests_are_served_by_priority(scripted: Callable[..., RuleBench]) -> None:
    bench = scripted([{"prompt_ids": [1], "token_ids": [7], "stall": True}], scripted_max_active=1)
    stalled = bench.submit(prompt_ids=(1,))
    bench.recorder.wait_for_token(stalled)
    late, second, first, third = (bench.submit(max_tokens=1, priority=priority) for priority in (0.1, 0.5, 0.9, 0.5))
    bench.executor.cancel(stalled)
    bench.end_of(late)
    assert bench.recorder.ended == [stalled, first, second, third, late]


def test_failure_of_the_engine_ends_all_requests_and_rejects_new_ones(scripted: Callable[..., RuleBench]) -> None:
    bench = scripted([{"prompt_ids": [1], "token_ids": [2**64]}])  # does not fit into a step's array
    others = [bench.submit(prompt_ids=(2,)) for _ in range(MAX_ACTIVE - 1)]
    for number in others:
        bench.recorder.wait_for_token(number)
    for number in [*others, bench.submit(prompt_ids=(1,))]:
        error = bench.end_of(number).error
        assert error is not None
        assert error.code is ErrorCode.INTERNAL_ERROR
    with pytest.raises(PipelineError) as caught:
        bench.submit()
    assert caught.value.code is ErrorCode.ENGINE_UNAVAILABLE
    bench.executor.close()
    assert bench.executor.stats().active_requests == 0
    assert bench.recorder.violations == []


def test_exception_in_the_sink_does_not_stop_the_engine_thread() -> None:
    recorder, raised = StepRecorder(), threading.Event()

    def sink(step: EngineStep) -> None:
        if not raised.is_set():
            raised.set()
            raise RuntimeError("a bug in the sink")
        recorder(step)

    executor = ScriptedExecutor([], [3], sink, steps_per_s=2000, max_active=1)
    executor.submit(1, make_request(max_tokens=1))
    assert raised.wait(DEADLINE_S)
    executor.submit(2, make_request(max_tokens=1))
    assert recorder.wait_for_end(2).finish_reason is FinishReason.LENGTH
    executor.close()
