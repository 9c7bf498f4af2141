"""The queue in front of the engine, on the fake: turns of tenants, what the engine gets, cancels and time limits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_pipeline.executors.tensorrt_llm.admission import Admission, WaitingRequest
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.protocol.messages import FinishReason, GenerationRequest
from tests.support.executor_rules import DEADLINE_S
from tests.support.sample_requests import make_request
from tests.support.trtllm_bench import LONG, CreateBench, TrtllmBench, script
from tests.support.waiting import wait_until

MANY = 200


def request_of(tenant: str, number: int = 0, *, max_tokens: int = 2, **fields: Any) -> GenerationRequest:
    """Returns a request whose first prompt token is its number, by which upstream's requests are recognized."""
    request = make_request(f"{tenant} {number}", prompt_ids=(number, 7), max_tokens=max_tokens)
    return replace(request, tenant=tenant, **fields)


def occupied(create_bench: CreateBench, **arguments: Any) -> tuple[TrtllmBench, int]:
    """Returns a bench with one slot, and the number of the request that has it."""
    bench = create_bench(engine={"max_batch_size": 1}, **arguments)
    running = bench.submit(request_of("running", max_tokens=LONG))
    bench.recorder.wait_for_token(running)
    return bench, running


def test_other_tenant_starts_after_at_most_two_of_many_waiting_requests(create_bench: CreateBench) -> None:
    bench, running = occupied(create_bench)
    many = [bench.submit(request_of("many", n)) for n in range(MANY)]
    few = bench.submit(request_of("few", 500))
    bench.executor.cancel(running)
    for number in [*many, few]:
        assert bench.recorder.wait_for_end(number).finish_reason is FinishReason.LENGTH
    order = [request.input_token_ids[0] for request in bench.fake.requests[1:]]
    assert order.index(500) <= 2  # one was in the engine already, and one of the other tenant goes first
    assert sorted(order) == [*range(MANY), 500]


@pytest.mark.parametrize(("max_batch_size", "most"), [(1, 2), (8, 9), (100, 108)])
def test_engine_gets_little_more_than_its_batch(create_bench: CreateBench, max_batch_size: int, most: int) -> None:
    bench = create_bench(engine={"max_batch_size": max_batch_size})
    numbers = [bench.submit(request_of("a", n, max_tokens=LONG)) for n in range(MANY)]
    wait_until(lambda: len(bench.fake.requests) == most, limit_s=DEADLINE_S, what="the engine has all that it may have")
    wait_until(
        lambda: bench.executor.stats().active_requests == max_batch_size, limit_s=DEADLINE_S, what="the batch is full"
    )
    assert bench.executor.stats().queued_requests == MANY - max_batch_size
    assert len(bench.fake.requests) == most
    for number in numbers:
        bench.executor.cancel(number)
    for number in numbers:
        assert bench.recorder.wait_for_end(number).finish_reason is FinishReason.CANCELLED
    assert bench.executor.stats().queued_requests == 0


def test_engine_whose_memory_is_full_gets_few_requests_beyond_those_it_decodes(create_bench: CreateBench) -> None:
    bench = create_bench(engine={"max_batch_size": 1000})
    bench.fake.max_batch_size = 3  # as if the KV cache had no room for more
    numbers = [bench.submit(request_of("a", n, max_tokens=LONG)) for n in range(MANY)]
    for number in numbers[:3]:
        bench.recorder.wait_for_token(number)
    wait_until(lambda: len(bench.fake.requests) >= 11, limit_s=DEADLINE_S, what="the engine has more")
    assert len(bench.fake.requests) <= 3 + 8
    for number in numbers:
        bench.executor.cancel(number)


def test_waiting_request_is_cancelled_without_the_engine(create_bench: CreateBench) -> None:
    bench, running = occupied(create_bench)
    waiting = [bench.submit(request_of("a", n)) for n in range(5)]
    for _ in range(2):
        bench.executor.cancel(waiting[3])
    assert bench.recorder.wait_for_end(waiting[3]).finish_reason is FinishReason.CANCELLED
    bench.executor.cancel(running)
    for number in waiting:
        bench.recorder.wait_for_end(number)
    assert bench.fake.cancels == [1]
    assert [request.input_token_ids[0] for request in bench.fake.requests[1:]] == [0, 1, 2, 4]
    assert bench.recorder.violations == []


def test_time_limit_passes_while_a_request_waits(create_bench: CreateBench) -> None:
    bench, running = occupied(create_bench)
    bench.submit(request_of("a", 1, max_tokens=LONG))
    limited = bench.submit(request_of("a", 2, time_limit_s=0.05))
    error = bench.recorder.wait_for_end(limited).error
    assert error is not None
    assert error.code is ErrorCode.DEADLINE_EXCEEDED
    assert len(bench.fake.requests) == 2
    bench.executor.cancel(running)


def test_time_in_the_queue_counts_towards_the_time_limit(create_bench: CreateBench) -> None:
    bench, running = occupied(create_bench)
    bench.submit(request_of("a", 1, max_tokens=2))
    limited = bench.submit(request_of("a", 2, time_limit_s=100.0))
    bench.executor.cancel(running)
    bench.recorder.wait_for_end(limited)
    assert bench.fake.requests[-1].allotted_time_ms.total_seconds() < 100


def test_unknown_error_of_the_engine_fails_only_the_waiting_request_that_it_refuses(create_bench: CreateBench) -> None:
    bench, running = occupied(create_bench, script=script(enqueue_error="Assertion failed: something"))
    bench.submit(request_of("a", 1))
    refused = bench.submit(make_request("refused"))
    following = bench.submit(request_of("a", 2))
    bench.executor.cancel(running)
    error = bench.recorder.wait_for_end(refused).error
    assert error is not None
    assert error.code is ErrorCode.INTERNAL_ERROR
    assert bench.recorder.wait_for_end(following).finish_reason is FinishReason.LENGTH


def test_request_that_the_engine_never_takes_keeps_no_others_waiting(create_bench: CreateBench) -> None:
    full = "Maximum queue size of 8 has been reached, please try again later"
    bench, running = occupied(create_bench, script=script(enqueue_error=full))
    bench.submit(request_of("a", 1))
    refused = bench.submit(make_request("refused"))
    following = bench.submit(request_of("a", 2))
    bench.executor.cancel(running)
    error = bench.recorder.wait_for_end(refused).error
    assert error is not None
    assert (error.code, error.retry_after_s is not None) == (ErrorCode.QUEUE_FULL, True)
    assert bench.recorder.wait_for_end(following).finish_reason is FinishReason.LENGTH
    with pytest.raises(PipelineError, match="queue is full"):
        bench.submit(make_request("refused at once"))


def test_dead_engine_fails_the_waiting_requests_too(create_bench: CreateBench) -> None:
    bench, _ = occupied(create_bench, script=script(death="MPI worker is gone"))
    bench.fake.max_batch_size = 2
    waiting = [bench.submit(request_of("a", n, max_tokens=LONG)) for n in range(20)]
    bench.fake.death = "MPI worker is gone"
    for number in waiting:
        error = bench.recorder.wait_for_end(number).error
        assert error is not None
        assert error.code is ErrorCode.ENGINE_UNAVAILABLE
    assert bench.exited.wait(DEADLINE_S)


def test_close_ends_the_waiting_requests(create_bench: CreateBench) -> None:
    bench, _ = occupied(create_bench)
    waiting = [bench.submit(request_of("a", n, max_tokens=LONG)) for n in range(20)]
    bench.executor.close()
    assert {bench.recorder.wait_for_end(number).finish_reason for number in waiting} == {FinishReason.CANCELLED}
    assert len(bench.fake.requests) <= 3


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 500)), max_size=30), st.integers(1, 4096))
def test_limit_follows_what_the_engine_starts_and_always_lets_it_work(
    rounds: list[tuple[int, int]], max_batch_size: int
) -> None:
    admission = Admission(max_batch_size)
    for started, unstarted in rounds:
        admission.on_round(started=started, unstarted=unstarted)
    assert admission.has_room(in_engine=0, unstarted=0)
    started = rounds[-1][0] if rounds else 0
    assert admission.has_room(in_engine=0, unstarted=max(2 * started, 8) - 1)
    for _ in range(20):
        admission.on_round(started=0, unstarted=1)
    assert not admission.has_room(in_engine=0, unstarted=8)
    assert not admission.has_room(in_engine=max_batch_size + 8, unstarted=0)


def test_removed_requests_leave_nothing_behind() -> None:
    admission = Admission(4)
    for number in range(10):
        limit_s = 100.0 if number % 2 else None
        admission.add(WaitingRequest(number, request_of("a", number, time_limit_s=limit_s), object()))
    for number in range(5):
        assert admission.cancel(number)
        assert not admission.cancel(number)
    assert [end.number for end in admission.take_ended()] == [0, 1, 2, 3, 4]
    assert admission.take().number == 5
    assert sorted(admission.take_all()) == [6, 7, 8, 9]
    assert (len(admission), admission.needs_attention, admission.take_ended()) == (0, False, [])
