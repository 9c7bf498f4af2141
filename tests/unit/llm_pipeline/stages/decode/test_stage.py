"""DecodeStage: submission, refusals, cancellation, and exactly one ending for each request."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from llm_pipeline.protocol.errors import ErrorCode
from llm_pipeline.protocol.messages import (
    NO_INTEGERS,
    EngineStep,
    FinishReason,
    GenerationRequest,
    RequestEnd,
)
from llm_pipeline.stages.decode.stage import DecodeTimeouts
from tests.support.driven_stage import (
    DEADLINE_S,
    REFUSAL,
    UNKNOWN_NUMBER,
    VOCAB_SIZE,
    BrokenSender,
    DrivenStage,
    make_step,
    raising,
)
from tests.support.sample_requests import make_request

# --- Output ----------------------------------------------------------------------------------------------------------


def test_an_idle_sender_sends_token_by_token(decode: DrivenStage) -> None:
    decode.submit()
    for token_id in range(5):
        decode.executor.generate("a", token_id)
        assert decode.sender.wait_for(token_id + 1)[token_id].token_ids == (token_id,)


def test_tokens_gather_while_the_sender_is_busy(decode: DrivenStage) -> None:
    decode.submit()
    decode.block_sender()
    for token_id in range(5):
        decode.executor.generate("a", token_id)
    decode.sender.release()
    assert decode.sender.wait_for(2)[1].token_ids == (0, 1, 2, 3, 4)


def test_without_coalescing_every_token_is_sent_alone() -> None:
    decode = DrivenStage(coalesce=False)
    decode.submit()
    decode.block_sender()
    decode.executor.generate("a", 1, 2)
    decode.executor.generate("a", 3, reason=FinishReason.LENGTH)
    decode.sender.release()
    chunks = [chunk for chunk in decode.sender.wait_for_endings() if chunk.key == "a"]
    assert [chunk.token_ids for chunk in chunks] == [(1,), (2,), (3,)]
    assert [chunk.is_final for chunk in chunks] == [False, False, True]
    decode.close()


def test_a_request_that_does_not_stream_is_sent_once(decode: DrivenStage) -> None:
    decode.submit(stream=False)
    decode.submit("streamed")
    for token_id in range(3):
        decode.executor.generate("a", token_id)
    decode.executor.generate("streamed", 1)
    decode.sender.wait_for(1)
    decode.executor.generate("a", 3, reason=FinishReason.LENGTH)
    chunks = [chunk for chunk in decode.sender.wait_for_endings() if chunk.key == "a"]
    assert [(chunk.index, chunk.token_ids) for chunk in chunks] == [(0, (0, 1, 2, 3))]
    assert chunks[0].text_options is not None


def test_a_request_for_no_tokens_ends_without_the_executor(decode: DrivenStage) -> None:
    decode.submit(max_tokens=0)
    assert decode.sender.wait_for_endings()[0].finish_reason is FinishReason.LENGTH
    assert decode.executor.submitted == []


# --- Executors that fail or make invalid steps -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code"),
    [(REFUSAL, ErrorCode.ENGINE_UNAVAILABLE), (ZeroDivisionError(), ErrorCode.INTERNAL_ERROR)],
    ids=["refuses", "has a bug"],
)
def test_a_request_that_is_not_accepted_gets_one_final_error(
    decode: DrivenStage, error: Exception, code: ErrorCode
) -> None:
    decode.executor.on_submit = raising(error)
    decode.submit()
    (chunk,) = decode.sender.wait_for_endings()
    assert chunk.error is not None
    assert (chunk.error.code, chunk.index, chunk.token_ids) == (code, 0, ())


def test_an_engine_error_ends_the_request_after_its_earlier_tokens(decode: DrivenStage) -> None:
    decode.submit()
    decode.executor.generate("a", 1)
    decode.sender.wait_for(1)
    decode.executor.generate("a", error=REFUSAL)
    assert decode.sender.wait_for_endings()[-1].error is REFUSAL


def test_steps_of_unknown_requests_are_ignored(decode: DrivenStage) -> None:
    decode.executor.generate("unknown", 1, reason=FinishReason.STOP)
    decode.submit()
    decode.executor.generate("a", 1, reason=FinishReason.STOP)
    assert [chunk.key for chunk in decode.sender.wait_for_endings()] == ["a"]


def test_steps_after_the_end_are_ignored(decode: DrivenStage) -> None:
    decode.submit()
    decode.executor.generate("a", 1, reason=FinishReason.STOP)
    decode.executor.generate("a", 2)
    decode.executor.generate("a", reason=FinishReason.LENGTH)
    decode.executor.generate("a", error=REFUSAL)
    decode.submit("b")
    decode.executor.generate("b", 1, reason=FinishReason.STOP)
    chunks = decode.sender.wait_for_endings(2)
    assert [(chunk.key, chunk.token_ids) for chunk in chunks] == [("a", (1,)), ("b", (1,))]


def test_tokens_beyond_max_tokens_are_cut_off_and_the_request_is_cancelled_in_the_executor(decode: DrivenStage) -> None:
    decode.submit(max_tokens=3)
    decode.executor.generate("a", 1, 2)
    decode.executor.generate("a", 3, 4, 5)
    chunks = decode.sender.wait_for_endings()
    assert [token_id for chunk in chunks for token_id in chunk.token_ids] == [1, 2, 3]
    assert chunks[-1].finish_reason is FinishReason.LENGTH
    assert decode.executor.cancelled == ["a"]


def test_an_executor_that_fails_to_cancel_affects_no_request(decode: DrivenStage) -> None:
    decode.executor.on_cancel = raising(ZeroDivisionError())
    decode.stage.submit(make_request("broken", stream=True), BrokenSender())
    decode.executor.generate("broken", 1)
    decode.submit(max_tokens=1)
    decode.executor.generate("a", 1, 2)  # one too many, so it is cancelled, too
    decode.stage.cancel("a")
    assert decode.sender.wait_for_endings()[0].token_ids == (1,)


@pytest.mark.parametrize("token_ids", [(1, VOCAB_SIZE), (-1,)], ids=["too large", "negative"])
def test_token_ids_outside_the_vocabulary_fail_their_request_and_no_other(
    decode: DrivenStage, token_ids: tuple[int, ...]
) -> None:
    decode.submit("a")
    decode.submit("b")
    decode.executor.generate_for({"a": token_ids, "b": (1,)}, ends=["b"])
    endings = {chunk.key: chunk for chunk in decode.sender.wait_for_endings(2)}
    assert endings["a"].error is not None
    assert endings["a"].error.code is ErrorCode.INTERNAL_ERROR
    assert endings["a"].token_ids == ()
    assert endings["b"].token_ids == (1,)
    assert decode.executor.cancelled == ["a"]


@pytest.mark.parametrize(
    "token_ids",
    [np.array([1.5]), np.array(["1"]), np.array([None]), np.array([True]), np.array([[1]]), None, 7, np.array([1, 2])],
    ids=["a fraction", "text", "None", "a boolean", "two dimensions", "no array", "a number", "too many"],
)
def test_a_step_with_invalid_token_ids_fails_the_requests_that_it_names(decode: DrivenStage, token_ids: Any) -> None:
    decode.submit("a")
    decode.submit("b")
    decode.executor.emit(EngineStep(np.array([decode.executor.number_of("a")]), token_ids))
    (failed,) = decode.sender.wait_for_endings()
    assert failed.error is not None
    assert (failed.key, failed.error.code, failed.token_ids) == ("a", ErrorCode.INTERNAL_ERROR, ())
    assert decode.executor.cancelled == ["a"]
    decode.executor.generate("b", 1, reason=FinishReason.LENGTH)
    assert decode.sender.wait_for_endings(2)[-1].token_ids == (1,)


@pytest.mark.parametrize(
    "step",
    [
        None,
        "step",
        make_step({UNKNOWN_NUMBER: (1,)}),
        EngineStep(np.array(["a"]), np.array([1])),
        EngineStep(np.array([float("nan")]), np.array([1])),
        EngineStep(None, None),  # type: ignore[arg-type]
        EngineStep(NO_INTEGERS, NO_INTEGERS, ends=None),  # type: ignore[arg-type]
        EngineStep(NO_INTEGERS, NO_INTEGERS, ends=[None]),  # type: ignore[list-item]
        EngineStep(NO_INTEGERS, NO_INTEGERS, ends=[RequestEnd([0])]),  # type: ignore[arg-type]
    ],
    ids=[
        "None",
        "text",
        "an unknown request",
        "a key",
        "NaN",
        "no arrays",
        "no ends",
        "None as an end",
        "the end of a list",
    ],
)
def test_a_step_that_names_no_request_affects_none(decode: DrivenStage, step: Any) -> None:
    decode.submit()
    decode.executor.emit(step)
    decode.executor.generate("a", 1, reason=FinishReason.LENGTH)
    assert decode.sender.wait_for_endings()[0].token_ids == (1,)


def test_a_sender_that_fails_ends_only_its_own_request(decode: DrivenStage) -> None:
    broken = BrokenSender()
    decode.stage.submit(make_request("broken", stream=True), broken)
    decode.submit()
    decode.executor.generate("broken", 1)
    assert broken.failed.wait(DEADLINE_S)
    decode.executor.generate("a", 1, reason=FinishReason.STOP)
    decode.sender.wait_for_endings()
    assert decode.executor.cancelled == ["broken"]


# --- Keys ------------------------------------------------------------------------------------------------------------


def test_a_key_in_use_is_refused_and_the_first_request_goes_on(decode: DrivenStage) -> None:
    decode.submit()
    decode.submit()
    (refused,) = decode.sender.wait_for_endings()
    assert refused.error is not None
    assert (refused.error.code, refused.error.param, refused.index) == (ErrorCode.VALUE_OUT_OF_RANGE, "request_key", 0)
    decode.executor.generate("a", 1, reason=FinishReason.STOP)
    assert decode.sender.wait_for_endings(2)[1].token_ids == (1,)


def test_a_key_may_be_used_again_after_the_end(decode: DrivenStage) -> None:
    for count in (1, 2):
        decode.submit()
        decode.executor.generate("a", 1, reason=FinishReason.STOP)
        assert decode.sender.wait_for_endings(count)[-1].finish_reason is FinishReason.STOP


# --- Cancellation ----------------------------------------------------------------------------------------------------


def test_a_cancellation_reaches_the_executor_and_its_ending_the_sender(decode: DrivenStage) -> None:
    decode.submit()
    decode.stage.cancel("a")
    assert decode.executor.cancelled == ["a"]
    decode.executor.generate("a", reason=FinishReason.CANCELLED)
    assert decode.sender.wait_for_endings()[0].finish_reason is FinishReason.CANCELLED
    assert decode.stage.stats().cancelled_total == 1


def test_a_cancellation_may_come_before_its_request(decode: DrivenStage) -> None:
    """The front end's cancel message does not pass through preprocess, so it can overtake the request."""
    decode.stage.cancel("a")
    decode.executor.cancelled.clear()
    decode.submit()
    assert decode.executor.cancelled == ["a"]


def test_a_cancellation_may_come_during_the_executors_submit(decode: DrivenStage) -> None:
    """The executor does not have the key yet when the first cancellation arrives."""
    known_when_cancelled: list[bool] = []
    decode.executor.on_submit = lambda request: decode.stage.cancel(request.key)
    decode.executor.on_cancel = lambda key: known_when_cancelled.append(key in decode.executor.live)
    decode.submit()
    assert known_when_cancelled == [False, True]


def test_an_early_cancellation_counts_once(decode: DrivenStage) -> None:
    decode.stage.cancel("a")
    decode.submit()
    decode.executor.generate("a", reason=FinishReason.CANCELLED)
    decode.sender.wait_for_endings()
    decode.executor.cancelled.clear()
    decode.submit()
    assert decode.executor.cancelled == []


def test_a_cancellation_that_comes_after_the_end_is_ignored(decode: DrivenStage) -> None:
    """A client that uses a key again must not meet the late cancellation of its earlier request."""
    decode.submit()
    decode.executor.generate("a", 1, reason=FinishReason.LENGTH)
    decode.sender.wait_for_endings()
    decode.stage.cancel("a")
    decode.executor.cancelled.clear()
    decode.submit()
    assert decode.executor.cancelled == []


def test_requests_of_a_client_that_is_gone_are_cancelled() -> None:
    decode = DrivenStage(timeouts=DecodeTimeouts(lease_s=0.2, tick_s=0.01))
    renewing = threading.Event()
    decode.executor.on_cancel = lambda key: decode.executor.generate(key, reason=FinishReason.CANCELLED)
    for key, client_id in (("a", "dead"), ("b", "dead"), ("c", "alive"), ("d", None)):
        decode.stage.submit(make_request(key, max_tokens=9, stream=True), decode.sender, client_id)

    def renew() -> None:
        while not renewing.wait(0.001):
            decode.stage.renew("alive")

    alive = threading.Thread(target=renew)
    alive.start()
    try:
        assert {chunk.key for chunk in decode.sender.wait_for_endings(2)} == {"a", "b"}
        assert sorted(decode.executor.cancelled) == ["a", "b"]
    finally:
        renewing.set()
        alive.join()
        decode.close()


# --- Limits, counts, shutdown ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("queued", "is_refused"), [(0, False), (100, False), (101, True)])
def test_a_full_queue_refuses_with_the_limit(decode: DrivenStage, queued: int, is_refused: bool) -> None:
    decode.executor.queued_requests = queued
    decode.submit()
    assert decode.executor.submitted == ([] if is_refused else ["a"])
    if is_refused:
        (chunk,) = decode.sender.wait_for_endings()
        assert chunk.error is not None
        assert (chunk.error.code, chunk.error.retry_after_s is not None) == (ErrorCode.QUEUE_FULL, True)
        assert "100" in chunk.error.message


def test_stats_come_from_the_executor(decode: DrivenStage) -> None:
    decode.executor.queued_requests = 5
    decode.submit()
    assert (decode.stage.stats().active_requests, decode.stage.stats().queued_requests) == (1, 5)


def test_changes_are_reported_at_the_start_the_first_token_and_the_end(decode: DrivenStage) -> None:
    def generate(token_id: int) -> None:
        decode.executor.generate("a", token_id)
        decode.sender.wait_for(token_id)

    actions: list[Callable[[], None]] = [
        decode.submit,
        lambda: generate(1),
        lambda: generate(2),
        lambda: decode.executor.generate("a", 3, reason=FinishReason.STOP),
    ]
    is_reported = []
    for action in actions:
        before = decode.changes
        action()
        is_reported.append(decode.changes > before)
    assert is_reported == [True, True, False, True]


def test_close_ends_every_request(decode: DrivenStage) -> None:
    for key in ("a", "b", "c"):
        decode.submit(key)
    decode.executor.generate("a", 1)
    decode.stage.close()
    endings = {chunk.key: chunk.finish_reason for chunk in decode.sender.chunks if chunk.is_final}
    assert endings == dict.fromkeys(("a", "b", "c"), FinishReason.CANCELLED)


def test_a_request_after_close_gets_an_error(decode: DrivenStage) -> None:
    decode.stage.close()
    decode.submit()
    (chunk,) = decode.sender.wait_for_endings()
    assert chunk.error is not None
    assert chunk.error.code is ErrorCode.ENGINE_UNAVAILABLE


def test_a_request_that_the_executor_refuses_during_close_gets_its_error(decode: DrivenStage) -> None:
    closing = threading.Thread(target=decode.stage.close)

    def close_and_refuse(_request: GenerationRequest) -> None:
        closing.start()
        closing.join(0.2)
        assert closing.is_alive(), "the stage is closed while a request has no ending"
        raise REFUSAL

    decode.executor.on_submit = close_and_refuse
    decode.submit()
    assert decode.sender.wait_for_endings()[0].error is REFUSAL
    closing.join(DEADLINE_S)
    assert not closing.is_alive()
