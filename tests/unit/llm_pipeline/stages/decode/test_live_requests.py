"""The registry of live requests: who is live, what has ended, and what may be sent."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.protocol.messages import (
    EngineStep,
    FinishReason,
    GenerationRequest,
    RequestEnd,
    RequestLogprobs,
    TokenChunk,
)
from llm_pipeline.runtime.retry_after import RetryAfterEstimator
from llm_pipeline.stages.decode.leases import Leases
from llm_pipeline.stages.decode.live_requests import LiveRequests, StepEffects
from llm_pipeline.stages.decode.outbox import Outbox
from llm_pipeline.stages.decode.request_rows import RequestRows
from tests.support.driven_stage import DEADLINE_S, REFUSAL, UNKNOWN_NUMBER, VOCAB_SIZE, RecordingSender, make_step
from tests.support.sample_requests import make_request


@pytest.fixture
def requests() -> LiveRequests:
    return LiveRequests(vocab_size=VOCAB_SIZE)


def register_one(
    requests: LiveRequests,
    key: str = "a",
    *,
    client_id: str | None = None,
    max_tokens: int = 100,
    make_outbox: Callable[[GenerationRequest, RecordingSender], Outbox] = Outbox,
) -> Outbox:
    request = make_request(key, max_tokens=max_tokens, stream=True)
    outbox = make_outbox(request, RecordingSender())
    requests.register(request, outbox, client_id)
    return outbox


def register(requests: LiveRequests, *keys: str) -> list[Outbox]:
    return [register_one(requests, key) for key in keys]


def generate(
    requests: LiveRequests, outbox: Outbox, *token_ids: int, reason: FinishReason | None = None
) -> StepEffects:
    ends = [] if reason is None else [RequestEnd(outbox.number, reason)]
    return requests.on_step(make_step({outbox.number: token_ids}, ends=ends))


def end(requests: LiveRequests, *outboxes: Outbox, reason: FinishReason = FinishReason.CANCELLED) -> None:
    requests.on_step(make_step({}, ends=[RequestEnd(outbox.number, reason) for outbox in outboxes]))


def test_a_key_in_use_is_refused_and_the_first_request_goes_on(requests: LiveRequests) -> None:
    (first,) = register(requests, "a")
    with pytest.raises(PipelineError) as refusal:
        register_one(requests, "a")
    assert (refusal.value.code, refusal.value.param) == (ErrorCode.VALUE_OUT_OF_RANGE, "request_key")
    assert generate(requests, first, 1).outboxes == [first]


def test_a_key_may_be_used_again_as_soon_as_its_request_has_ended(requests: LiveRequests) -> None:
    (first,) = register(requests, "a")
    generate(requests, first, 1, reason=FinishReason.STOP)
    (second,) = register(requests, "a")
    assert generate(requests, second, 2).outboxes == [second]
    assert generate(requests, first, 3).outboxes == []
    assert requests.take_chunk(first).token_ids == (1,)


def test_steps_of_unknown_and_ended_requests_are_ignored(requests: LiveRequests) -> None:
    (ended,) = register(requests, "a")
    generate(requests, ended, 1, reason=FinishReason.STOP)
    numbers = (ended.number, UNKNOWN_NUMBER, -1)
    ends = [RequestEnd(number, error=REFUSAL) for number in numbers]
    effects = requests.on_step(make_step(dict.fromkeys(numbers, (2,)), ends=ends))
    assert (effects.outboxes, effects.unwanted, effects.is_changed) == ([], [], False)


def test_an_invalid_token_id_ends_its_own_request_which_the_executor_should_cancel(requests: LiveRequests) -> None:
    broken, intact = register(requests, "a", "b")
    effects = requests.on_step(make_step({broken.number: (VOCAB_SIZE,), intact.number: (1,)}))
    assert (set(effects.outboxes), effects.unwanted) == ({broken, intact}, [broken.number])
    assert requests.take_chunk(broken).error is not None
    assert requests.take_chunk(intact).token_ids == (1,)


def test_a_request_that_reaches_max_tokens_ends_and_the_executor_should_cancel_it(requests: LiveRequests) -> None:
    outbox = register_one(requests, max_tokens=1)
    assert generate(requests, outbox, 1).unwanted == [outbox.number]
    assert requests.take_chunk(outbox).finish_reason is FinishReason.LENGTH


def test_a_request_that_ends_with_its_last_token_keeps_its_finish_reason(requests: LiveRequests) -> None:
    outbox = register_one(requests, max_tokens=1)
    assert generate(requests, outbox, 1, reason=FinishReason.STOP).unwanted == []
    assert requests.take_chunk(outbox).finish_reason is FinishReason.STOP


def test_tokens_and_logprobs_beyond_max_tokens_are_dropped_and_the_request_ends(requests: LiveRequests) -> None:
    outbox = register_one(requests, max_tokens=3)
    generate(requests, outbox, 1, 2)
    logprobs = RequestLogprobs((-0.3, -0.4, -0.5), tuple(((token_id,), (-0.5,)) for token_id in (3, 4, 5)))
    requests.on_step(make_step({outbox.number: (3, 4, 5)}, logprobs={outbox.number: logprobs}))
    chunk = requests.take_chunk(outbox)
    assert (chunk.token_ids, chunk.finish_reason) == ((1, 2, 3), FinishReason.LENGTH)
    assert (chunk.logprobs, chunk.top_logprobs) == ((-0.3,), (((3,), (-0.5,)),))


class BrokenOutbox(Outbox):
    def take_chunk(self, max_tokens: int | None = None, ack_address: str | None = None) -> TokenChunk:
        raise RuntimeError("a bug")


def test_a_chunk_that_can_not_be_made_ends_its_request_with_an_error(requests: LiveRequests) -> None:
    outbox = register_one(requests, make_outbox=BrokenOutbox)
    generate(requests, outbox, 1)
    chunk = requests.take_chunk(outbox)
    assert chunk.error is not None
    assert (chunk.error.code, chunk.index, chunk.is_final) == (ErrorCode.INTERNAL_ERROR, 0, True)
    assert generate(requests, outbox, 2).outboxes == []


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
    outboxes = register(requests, *map(str, range(100)))
    requests.on_step(make_step({}, ends=[RequestEnd(outbox.number, error=REFUSAL) for outbox in outboxes]))
    assert estimator.completions == 0
    (outbox,) = register(requests, "a")
    generate(requests, outbox, 1, reason=FinishReason.STOP)
    assert estimator.completions == 1


def test_cancelled_requests_are_counted_when_they_end(requests: LiveRequests) -> None:
    outboxes = register(requests, "a", "b")
    assert requests.cancel("a") == outboxes[0].number
    assert requests.cancelled_total == 0
    end(requests, *outboxes)
    assert requests.cancelled_total == 2


def test_a_cancellation_may_come_before_its_request(requests: LiveRequests) -> None:
    assert requests.cancel("a") is None
    early, other = (
        requests.register(request, Outbox(request, RecordingSender()))
        for request in (make_request("a"), make_request("b"))
    )
    assert (early.is_cancelled, other.is_cancelled) == (True, False)


def test_a_cancelled_request_is_overdue_after_its_timeout() -> None:
    requests = LiveRequests(vocab_size=VOCAB_SIZE, cancel_timeout_s=2.0, tick_s=1.0)
    stuck, _ = register(requests, "a", "b")
    requests.cancel("a")
    assert [requests.tick().overdue for _ in range(4)] == [[], [], [stuck.number], [stuck.number]]
    end(requests, stuck)
    assert requests.tick().overdue == []


def test_requests_of_a_client_whose_lease_expires_are_abandoned_until_they_end() -> None:
    requests = LiveRequests(vocab_size=VOCAB_SIZE, leases=Leases(lease_s=1.0, tick_s=1.0))
    dead = register_one(requests, "a", client_id="dead")
    register_one(requests, "b", client_id="alive")
    register_one(requests, "c")
    found = []
    for _ in range(3):
        requests.renew("alive")
        found.append(requests.tick())
    assert [(tick.abandoned, tick.newly_abandoned) for tick in found] == [
        ([], 0),
        ([dead.number], 1),
        ([dead.number], 0),
    ]
    end(requests, dead)
    requests.renew("alive")
    assert requests.tick().abandoned == []


def test_after_close_requests_are_refused(requests: LiveRequests) -> None:
    requests.close(timeout_s=DEADLINE_S)
    with pytest.raises(PipelineError) as refusal:
        register_one(requests)
    assert refusal.value.code is ErrorCode.ENGINE_UNAVAILABLE


def test_close_waits_until_every_final_chunk_has_been_taken(requests: LiveRequests) -> None:
    (outbox,) = register(requests, "a")
    closing = threading.Thread(target=requests.close, args=(DEADLINE_S,))
    closing.start()
    generate(requests, outbox, 1, 2, reason=FinishReason.STOP)
    assert not requests.take_chunk(outbox, max_tokens=1).is_final
    closing.join(0.1)
    assert closing.is_alive()
    assert requests.take_chunk(outbox, max_tokens=1).is_final
    closing.join(DEADLINE_S)
    assert not closing.is_alive()


def test_close_does_not_wait_forever(requests: LiveRequests) -> None:
    register(requests, "a")
    requests.close(timeout_s=0.01)


def test_without_a_free_row_a_request_is_refused() -> None:
    requests = LiveRequests(vocab_size=VOCAB_SIZE, rows=RequestRows(VOCAB_SIZE, capacity=2))
    first, _ = register(requests, "a", "b")
    with pytest.raises(PipelineError) as refusal:
        register_one(requests, "c")
    assert refusal.value.code is ErrorCode.QUEUE_FULL
    end(requests, first)
    register(requests, "c")


ARRAYS: dict[str, dict[str, Any]] = {
    "fractions as numbers": {"numbers": np.array([0.0, 1.0])},
    "fractions as token ids": {"token_ids": np.array([1.0, 2.0])},
    "fractions as counts": {"counts": np.array([1.0, 1.0])},
    "booleans as token ids": {"token_ids": np.array([True, False])},
    "two dimensions": {"token_ids": np.array([[1], [2]])},
    "too few counts": {"counts": np.array([2])},
    "counts of too many tokens": {"counts": np.array([1, 2])},
    "a count of 0": {"counts": np.array([2, 0])},
    "a negative count": {"counts": np.array([3, -1])},
    "too few token ids": {"token_ids": np.array([1])},
    "a request twice": {"numbers": np.array([0, 1, 0]), "token_ids": np.array([1, 2, 3])},
    "logprobs of another type": {"logprobs": {0: None}},
}


@pytest.mark.parametrize("arrays", ARRAYS.values(), ids=ARRAYS)
def test_a_step_whose_arrays_do_not_fit_together_fails_the_requests_that_it_names(
    requests: LiveRequests, arrays: dict[str, Any]
) -> None:
    a, b, other = register(requests, "a", "b", "c")
    assert (a.number, b.number) == (0, 1)
    step: dict[str, Any] = {"numbers": np.array([0, 1]), "token_ids": np.array([1, 2])}
    effects = requests.on_step(EngineStep(**{**step, **arrays}))
    assert sorted(effects.unwanted) == [0, 1]
    for outbox in (a, b):
        chunk = requests.take_chunk(outbox)
        assert chunk.error is not None
        assert chunk.error.code is ErrorCode.INTERNAL_ERROR
    assert generate(requests, other, 1).outboxes == [other]


def test_ended_and_unknown_requests_may_occur_twice(requests: LiveRequests) -> None:
    """The executor may not know yet that a request has ended here."""
    ended, live = register(requests, "a", "b")
    end(requests, ended)
    numbers = np.array([ended.number, live.number, ended.number, UNKNOWN_NUMBER, UNKNOWN_NUMBER])
    assert requests.on_step(EngineStep(numbers, np.arange(5))).outboxes == [live]
    assert requests.take_chunk(live).token_ids == (1,)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "uint32", "int64", "uint64"])
def test_arrays_may_have_any_type_of_integers(requests: LiveRequests, dtype: str) -> None:
    a, b = register_one(requests, "a", max_tokens=2), register_one(requests, "b")
    numbers, token_ids, counts = (np.array(values, dtype) for values in ([a.number, b.number], [1, 2, 3, 4], [3, 1]))
    requests.on_step(EngineStep(numbers, token_ids, counts))
    assert [requests.take_chunk(outbox).token_ids for outbox in (a, b)] == [(1, 2), (4,)]
