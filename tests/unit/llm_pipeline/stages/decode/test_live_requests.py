"""The registry of live requests: who is live, what has ended, and what may be sent."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.protocol.messages import FinishReason, StepOutput, TokenChunk
from llm_pipeline.runtime.retry_after import RetryAfterEstimator
from llm_pipeline.stages.decode.leases import Leases
from llm_pipeline.stages.decode.live_requests import LiveRequests
from llm_pipeline.stages.decode.outbox import Outbox
from tests.support.driven_stage import DEADLINE_S, REFUSAL, VOCAB_SIZE, RecordingSender
from tests.support.sample_requests import make_request


def make_outbox(key: str = "a", *, client_id: str | None = None, max_tokens: int = 100) -> Outbox:
    return Outbox(make_request(key, max_tokens=max_tokens, stream=True), RecordingSender(), client_id)


@pytest.fixture
def requests() -> LiveRequests:
    return LiveRequests(vocab_size=VOCAB_SIZE)


def register(requests: LiveRequests, *keys: str) -> list[Outbox]:
    outboxes = [make_outbox(key) for key in keys]
    for outbox in outboxes:
        requests.register(outbox)
    return outboxes


def test_a_key_in_use_is_refused_and_the_first_request_goes_on(requests: LiveRequests) -> None:
    (first,) = register(requests, "a")
    with pytest.raises(PipelineError) as refusal:
        requests.register(make_outbox("a"))
    assert (refusal.value.code, refusal.value.param) == (ErrorCode.VALUE_OUT_OF_RANGE, "request_key")
    assert requests.on_steps([StepOutput("a", (1,))]).updated == [first]


def test_a_key_may_be_used_again_as_soon_as_its_request_has_ended(requests: LiveRequests) -> None:
    (first,) = register(requests, "a")
    requests.on_steps([StepOutput("a", (1,), FinishReason.STOP)])
    (second,) = register(requests, "a")
    assert requests.on_steps([StepOutput("a", (2,))]).updated == [second]
    assert requests.take_chunk(first).token_ids == (1,)


def test_steps_of_unknown_and_ended_requests_are_ignored(requests: LiveRequests) -> None:
    register(requests, "a")
    requests.on_steps([StepOutput("a", (1,), FinishReason.STOP)])
    late = [StepOutput("a", (2,)), StepOutput("a", error=REFUSAL), StepOutput("unknown", (1,), FinishReason.STOP)]
    effects = requests.on_steps(late)
    assert (effects.updated, effects.unwanted, effects.is_changed) == ([], [], False)


def test_an_invalid_step_ends_its_own_request_which_the_executor_should_cancel(requests: LiveRequests) -> None:
    broken, intact = register(requests, "a", "b")
    effects = requests.on_steps([StepOutput("a", (VOCAB_SIZE,)), StepOutput("b", (1,))])
    assert (effects.updated, effects.unwanted) == ([broken, intact], ["a"])
    assert requests.take_chunk(broken).error is not None
    assert requests.take_chunk(intact).token_ids == (1,)


def test_a_request_that_reaches_max_tokens_ends_and_the_executor_should_cancel_it(requests: LiveRequests) -> None:
    outbox = make_outbox(max_tokens=1)
    requests.register(outbox)
    assert requests.on_steps([StepOutput("a", (1,))]).unwanted == ["a"]
    assert requests.take_chunk(outbox).finish_reason is FinishReason.LENGTH


class BrokenOutbox(Outbox):
    def take_chunk(self, max_tokens: int | None = None, ack_address: str | None = None) -> TokenChunk:
        raise RuntimeError("a bug")


def test_a_chunk_that_can_not_be_made_ends_its_request_with_an_error(requests: LiveRequests) -> None:
    outbox = BrokenOutbox(make_request("a", stream=True), RecordingSender())
    requests.register(outbox)
    requests.on_steps([StepOutput("a", (1,))])
    chunk = requests.take_chunk(outbox)
    assert chunk.error is not None
    assert (chunk.error.code, chunk.index, chunk.is_final) == (ErrorCode.INTERNAL_ERROR, 0, True)
    assert requests.on_steps([StepOutput("a", (2,))]).updated == []


class CountingEstimator(RetryAfterEstimator):
    def __init__(self) -> None:
        super().__init__()
        self.completions = 0

    def completed(self) -> None:
        self.completions += 1
        super().completed()


def test_refusals_do_not_count_as_completions() -> None:
    """Otherwise a crowd of refused clients would be asked to retry at once."""
    estimator = CountingEstimator()
    requests = LiveRequests(vocab_size=VOCAB_SIZE, retry_after=estimator)
    keys = [str(number) for number in range(100)]
    register(requests, *keys)
    requests.on_steps([StepOutput(key, error=REFUSAL) for key in keys])
    assert estimator.completions == 0
    register(requests, "a")
    requests.on_steps([StepOutput("a", (1,), FinishReason.STOP)])
    assert estimator.completions == 1


def test_cancelled_requests_are_counted_when_they_end(requests: LiveRequests) -> None:
    register(requests, "a", "b")
    requests.cancel("a")
    assert requests.cancelled_total == 0
    requests.on_steps([StepOutput(key, finish_reason=FinishReason.CANCELLED) for key in "ab"])
    assert requests.cancelled_total == 2


def test_a_cancellation_may_come_before_its_request(requests: LiveRequests) -> None:
    requests.cancel("a")
    early, other = register(requests, "a", "b")
    assert (early.is_cancelled, other.is_cancelled) == (True, False)


def test_a_cancelled_request_is_overdue_after_its_timeout() -> None:
    requests = LiveRequests(vocab_size=VOCAB_SIZE, cancel_timeout_s=2.0, tick_s=1.0)
    register(requests, "a", "b")
    requests.cancel("a")
    assert [requests.tick().overdue for _ in range(4)] == [[], [], ["a"], ["a"]]
    requests.on_steps([StepOutput("a", finish_reason=FinishReason.CANCELLED)])
    assert requests.tick().overdue == []


def test_requests_of_a_client_whose_lease_expires_are_abandoned_until_they_end() -> None:
    requests = LiveRequests(vocab_size=VOCAB_SIZE, leases=Leases(lease_s=1.0, tick_s=1.0))
    for outbox in (make_outbox("a", client_id="dead"), make_outbox("b", client_id="alive"), make_outbox("c")):
        requests.register(outbox)
    found = []
    for _ in range(3):
        requests.renew("alive")
        found.append(requests.tick())
    assert [(tick.abandoned, tick.newly_abandoned) for tick in found] == [([], 0), (["a"], 1), (["a"], 0)]
    requests.on_steps([StepOutput("a", finish_reason=FinishReason.CANCELLED)])
    requests.renew("alive")
    assert requests.tick().abandoned == []


def test_after_close_requests_are_refused(requests: LiveRequests) -> None:
    requests.close(timeout_s=DEADLINE_S)
    with pytest.raises(PipelineError) as refusal:
        requests.register(make_outbox())
    assert refusal.value.code is ErrorCode.ENGINE_UNAVAILABLE


def test_close_waits_until_every_final_chunk_has_been_taken(requests: LiveRequests) -> None:
    (outbox,) = register(requests, "a")
    closing = threading.Thread(target=requests.close, args=(DEADLINE_S,))
    closing.start()
    requests.on_steps([StepOutput("a", (1, 2), FinishReason.STOP)])
    assert not requests.take_chunk(outbox, max_tokens=1).is_final
    closing.join(0.1)
    assert closing.is_alive()
    assert requests.take_chunk(outbox, max_tokens=1).is_final
    closing.join(DEADLINE_S)
    assert not closing.is_alive()


def test_close_does_not_wait_forever(requests: LiveRequests) -> None:
    register(requests, "a")
    requests.close(timeout_s=0.01)


@pytest.mark.parametrize("step", [None, "step", StepOutput(["a"], (1,))])  # type: ignore[arg-type]
def test_a_step_that_names_no_request_affects_none(requests: LiveRequests, step: Any) -> None:
    (outbox,) = register(requests, "a")
    effects = requests.on_steps([step, StepOutput("a", (1,))])
    assert (effects.updated, effects.unwanted) == ([outbox], [])
