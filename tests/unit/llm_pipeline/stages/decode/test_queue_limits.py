"""Limits of the queue: requests and tokens, in all and for each tenant."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.protocol.messages import FinishReason
from llm_pipeline.stages.decode.queue_limits import QueueLimits, WaitingRequests
from tests.support.driven_stage import DEADLINE_S, DrivenStage
from tests.support.sample_requests import make_request
from tests.support.waiting import wait_until

LIMITS = QueueLimits(requests=10, tokens=1000, tenant_share=0.5)


class Clients:
    """Tenants that send requests to a stage whose executor starts none of them by itself."""

    def __init__(self, limits: QueueLimits) -> None:
        self.decode = DrivenStage(queue_limits=limits)
        self._keys = itertools.count()

    def send(self, tenant: str, *, tokens: int = 10) -> PipelineError | None:
        """Sends a request of this many tokens. Returns the error if it was refused."""
        key = f"{tenant} {next(self._keys)}"
        request = make_request(key, prompt_ids=(5,), max_tokens=tokens - 1, stream=True)
        self.decode.submit_request(replace(request, tenant=tenant))
        if key in self.decode.executor.submitted:
            self.decode.executor.queued_requests += 1
            return None
        chunks = self.decode.sender.chunks
        wait_until(lambda: key in {chunk.key for chunk in chunks}, limit_s=DEADLINE_S, what="the refusal arrives")
        return next(chunk.error for chunk in chunks if chunk.key == key)

    def accepted(self, tenant: str, *, tokens: int = 10, limit: int = 100) -> int:
        """Sends until a request is refused. Returns the number of those that were accepted."""
        return next((n for n in range(limit) if self.send(tenant, tokens=tokens) is not None), limit)


@pytest.fixture
def serve() -> Iterator[Callable[[QueueLimits], Clients]]:
    stages = []

    def create(limits: QueueLimits) -> Clients:
        clients = Clients(limits)
        stages.append(clients.decode)
        return clients

    yield create
    for decode in stages:
        decode.close()


Serve = Callable[[QueueLimits], Clients]


def test_tenant_may_fill_its_part_of_the_queue_and_no_more(serve: Serve) -> None:
    clients = serve(LIMITS)
    assert clients.accepted("a") == 6  # up to 5 are waiting when one is accepted
    error = clients.send("a")
    assert error is not None
    assert error.code is ErrorCode.QUEUE_FULL
    assert error.retry_after_s is not None
    assert error.message == (
        "Your part of the engine's queue is full: 6 of your requests are waiting, and the limit is 5. "
        "Retry after the delay in the Retry-After header."
    )
    assert clients.accepted("b") == 5  # the queue as a whole is full


def test_tenant_without_a_waiting_request_may_have_one_in_a_full_queue(serve: Serve) -> None:
    clients = serve(LIMITS)
    for tenant in "ab":
        clients.accepted(tenant)
    assert [clients.accepted(tenant) for tenant in "cde"] == [1, 1, 1]
    error = clients.send("c")
    assert error is not None
    assert error.message.startswith("The engine's queue is full: 14 requests are waiting, and the limit is 10.")


def test_queue_is_bounded_however_many_tenants_there_are(serve: Serve) -> None:
    clients = serve(LIMITS)
    assert sum(clients.send(f"{n}") is None for n in range(100)) == 21


def test_requests_without_a_tenant_may_fill_the_whole_queue(serve: Serve) -> None:
    assert serve(LIMITS).accepted("") == 11


def test_tokens_are_limited_in_all_and_for_each_tenant(serve: Serve) -> None:
    clients = serve(QueueLimits(requests=1000, tokens=1000, tenant_share=0.5))
    assert clients.accepted("a", tokens=200) == 3  # 400 are waiting when the last one is accepted
    error = clients.send("a", tokens=1)
    assert error is not None
    assert "600 prompt and completion tokens of your requests are waiting, and the limit is 500" in error.message
    assert clients.accepted("", tokens=200) == 3
    error = clients.send("", tokens=1)
    assert error is not None
    assert "1200 prompt and completion tokens are waiting, and the limit is 1000" in error.message


def test_request_larger_than_the_limit_is_accepted_if_nothing_waits(serve: Serve) -> None:
    clients = serve(LIMITS)
    assert clients.send("a", tokens=5000) is None
    assert clients.send("a", tokens=1) is not None
    assert clients.send("b", tokens=1) is None


def test_requests_that_have_a_token_or_have_ended_do_not_count(serve: Serve) -> None:
    clients = serve(LIMITS)
    clients.accepted("a")
    executor = clients.decode.executor
    started, ended, cancelled = executor.submitted[:3]
    executor.generate(started, 1)
    executor.generate(ended, reason=FinishReason.LENGTH)
    executor.generate(cancelled, reason=FinishReason.CANCELLED)
    executor.queued_requests -= 3
    assert clients.accepted("a") == 3


def test_burst_of_a_tenant_is_accepted_while_the_executor_starts_all_of_it(serve: Serve) -> None:
    clients = serve(LIMITS)
    for _ in range(50):
        assert clients.send("a", tokens=100) is None
        clients.decode.executor.queued_requests = 0  # all are being prefilled


@pytest.mark.parametrize("tenant", ["a", ""], ids=["of a tenant", "without a tenant"])
def test_burst_that_fits_the_free_slots_does_not_count_as_waiting(serve: Serve, tenant: str) -> None:
    """The engine begins them in its next step, and has made none since they arrived."""
    clients = serve(LIMITS)
    clients.decode.executor.max_active = 40
    assert clients.accepted(tenant) == 40 + serve(LIMITS).accepted(tenant)


def test_tokens_of_a_burst_that_fits_the_free_slots_do_not_count(serve: Serve) -> None:
    clients = serve(QueueLimits(requests=1000, tokens=1000, tenant_share=0.5))
    clients.decode.executor.max_active = 40
    assert clients.accepted("a", tokens=200) == 43


def test_requests_that_the_engine_has_not_begun_in_two_steps_count_in_spite_of_free_slots(serve: Serve) -> None:
    """Such as those for which its KV cache has no room. The first of the two may have begun before they arrived."""
    clients = serve(LIMITS)
    executor = clients.decode.executor
    executor.max_active = 40
    assert clients.send("b") is None
    executor.queued_requests -= 1  # it is active
    assert all(clients.send("a") is None for _ in range(8))
    running = executor.submitted[0]
    executor.generate(running, 1)
    assert clients.send("a") is None
    executor.generate(running, 1)
    error = clients.send("a")
    assert error is not None
    assert error.message.startswith("Your part of the engine's queue is full: 8 of your requests are waiting")


def test_refused_and_ended_requests_are_no_steps_of_the_engine(serve: Serve) -> None:
    clients = serve(LIMITS)
    clients.decode.executor.max_active = 40
    assert clients.accepted("a") == 46
    for _ in range(3):
        assert clients.send("a") is not None
    clients.decode.executor.max_active = 41
    assert clients.send("a") is None


def test_requests_that_are_refused_do_not_count(serve: Serve) -> None:
    clients = serve(LIMITS)
    clients.accepted("a")
    for _ in range(20):
        assert clients.send("a") is not None
    clients.decode.executor.generate(clients.decode.executor.submitted[0], 1)
    clients.decode.executor.queued_requests -= 1
    assert clients.send("a") is None


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 500), st.booleans()), max_size=40))
def test_counts_return_to_zero_and_a_single_request_is_then_accepted(
    requests: list[tuple[str, int, bool]],
) -> None:
    waiting = WaitingRequests(LIMITS)
    for number, (tenant, tokens, is_removed) in enumerate(requests):
        waiting.add(number, replace(make_request(max_tokens=tokens), tenant=tenant))
        if is_removed:
            waiting.remove(number)
    for number in range(len(requests)):
        waiting.remove(number)
        waiting.remove(number)
    for tenant in ("a", "b", "c", ""):
        assert waiting.refusal(tenant, queued=10) is None
