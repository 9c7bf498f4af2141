"""An engine that hangs, one that is slow to shut down, and one that is idle."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from llm_pipeline.protocol.errors import ErrorCode
from llm_pipeline.protocol.messages import FinishReason
from tests.support.executor_rules import DEADLINE_S
from tests.support.sample_requests import make_request
from tests.support.trtllm_bench import CreateBench, TrtllmBench, error_of, script
from tests.support.waiting import wait_until


def test_engine_without_progress_is_dead(create_bench: CreateBench) -> None:
    """Progress is a response or an iteration."""
    bench = create_bench(script={**script(stalls=True), "stats": "none"}, trtllm_hang_timeout_s=0.3)
    assert error_of(bench, make_request()).code is ErrorCode.ENGINE_UNAVAILABLE
    assert bench.exited.wait(DEADLINE_S)


def test_idle_engine_is_not_hung(create_bench: CreateBench) -> None:
    bench = create_bench(script={**script(stalls=True), "stats": "none"}, trtllm_hang_timeout_s=1.0)
    time.sleep(1.2)  # idle for longer than the timeout
    number = bench.submit(make_request())
    time.sleep(0.2)  # several checks
    assert bench.recorder.outputs(number) == []
    bench.executor.cancel(number)
    assert bench.recorder.wait_for_end(number).finish_reason is FinishReason.CANCELLED
    assert bench.exits == []


def test_cancel_is_put_off_while_the_engine_is_silent(create_bench: CreateBench) -> None:
    """Upstream's call may wait with the GIL for a lock that a blocked step holds, and stop every thread."""
    bench = create_bench(script={**script(stalls=True), "stats": "none"}, timeouts={"silence_s": 0.2, "cancel_s": 0.3})
    number = bench.submit(make_request())
    time.sleep(0.4)  # the silence
    bench.executor.cancel(number)
    assert bench.recorder.wait_for_end(number).finish_reason is FinishReason.CANCELLED
    assert bench.fake.cancels == []
    bench.end_of(make_request("progress", prompt_ids=(1,), max_tokens=1))
    wait_until(lambda: bench.fake.cancels == [1], limit_s=DEADLINE_S, what="the cancel that was put off")


def test_cancel_goes_upstream_at_once_while_iterations_end(create_bench: CreateBench) -> None:
    bench = create_bench(script={**script(stalls=True), "steps_per_s": 50}, timeouts={"silence_s": 1.0})
    number = bench.submit(make_request())
    time.sleep(1.5)  # longer than an engine without iterations may take
    bench.executor.cancel(number)
    assert bench.fake.cancels == [1]
    assert bench.recorder.wait_for_end(number).finish_reason is FinishReason.CANCELLED


def test_watchdog_is_fed_by_the_awaiter_and_stops_with_it(bench: TrtllmBench) -> None:
    before = bench.watchdog.feeds
    wait_until(lambda: bench.watchdog.feeds > before + 2, limit_s=DEADLINE_S, what="it is fed while the engine is idle")
    bench.executor.close()
    assert bench.watchdog.is_stopped


def test_watchdog_stays_armed_after_a_fatal_error(create_bench: CreateBench) -> None:
    bench = create_bench(script=script(death="MPI worker is gone"))
    error_of(bench, make_request())
    assert bench.exited.wait(DEADLINE_S)
    assert not bench.watchdog.is_stopped


def test_close_ends_the_requests_of_a_hung_engine(create_bench: CreateBench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = create_bench(script=script(stalls=True), timeouts={"close_s": 0.1})
    hangs, released = threading.Event(), threading.Event()

    def hang(_self: Any, _timeout: Any) -> list[Any]:
        hangs.set()
        released.wait(DEADLINE_S)
        return []

    monkeypatch.setattr(type(bench.fake), "await_responses", hang)
    number = bench.submit(make_request())
    assert hangs.wait(DEADLINE_S)
    bench.executor.close()
    assert bench.recorder.wait_for_end(number).finish_reason is FinishReason.CANCELLED
    monkeypatch.undo()
    released.set()


def test_close_does_not_wait_for_an_engine_that_does_not_shut_down(create_bench: CreateBench) -> None:
    bench = create_bench(
        script={**script(stalls=True, ignores_cancel=True), "shutdown_s": 20.0},
        timeouts={"close_s": 0.2, "shutdown_s": 0.2},
    )
    number = bench.submit(make_request())
    started = time.monotonic()
    bench.executor.close()
    assert bench.recorder.wait_for_end(number).finish_reason is FinishReason.CANCELLED
    assert time.monotonic() - started < 5


def test_executor_shuts_the_engine_down_by_name(bench: TrtllmBench) -> None:
    """An early binding's __exit__ rejected None, so `with` failed."""
    bench.executor.close()
    assert bench.fake.is_down
