"""Requests of clients with a channel: every request of a bundle ends exactly once, over the channel."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from llm_pipeline.protocol.channel import StreamEnd, TokenBurst
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.protocol.messages import (
    EngineStep,
    FinishReason,
    GenerationRequest,
    PromptLogprobs,
    RequestEnd,
    RequestLogprobs,
)
from llm_pipeline.stages.decode.channel_sender import ChannelLimits
from llm_pipeline.stages.decode.stage import DecodeTimeouts
from llm_pipeline.stages.flow_control import SendWindow
from tests.support.driven_stage import CLIENT, DEADLINE_S, REFUSAL, VOCAB_SIZE, DrivenStage, make_step, raising
from tests.support.recorded_bursts import streams_of
from tests.support.sample_requests import make_request

INVALID = PipelineError(ErrorCode.CONTEXT_LENGTH_EXCEEDED, "The prompt is too long.", param="prompt")


def codes_of(bursts: list[TokenBurst]) -> dict[int, ErrorCode | None]:
    """The error code of each request that has ended, by slot."""
    ends = [end for burst in bursts for end in burst.ends]
    assert len({end.slot for end in ends}) == len(ends), "a request has ended twice"
    return {end.slot: None if end.error is None else end.error.code for end in ends}


# --- Output ----------------------------------------------------------------------------------------------------------


def test_a_step_of_several_requests_is_one_burst(decode: DrivenStage) -> None:
    reply = decode.open_channel()
    decode.submit_bundle("a", "b")
    decode.submit_bundle("c")
    decode.executor.generate_for({"a": (1,), "b": (2,), "c": (3,)})
    (first,) = reply.wait_for(1)
    assert (first.client_id, first.slots, first.counts, first.token_ids) == (CLIENT, [0, 1, 2], [1, 1, 1], [1, 2, 3])
    assert [(start.slot, start.key) for start in first.starts] == [(0, "a"), (1, "b"), (2, "c")]
    decode.executor.generate_for({"c": (4, 5), "a": (6,)}, ends=["a"])
    second = reply.wait_for(2)[1]
    assert (second.slots, second.counts, second.token_ids) == ([2, 0], [2, 1], [4, 5, 6])
    assert (list(second.starts), second.ends) == ([], [StreamEnd(0, FinishReason.STOP)])


def test_requests_that_do_not_stream_use_the_channel_too(decode: DrivenStage) -> None:
    reply = decode.open_channel()
    decode.stage.submit_bundle(CLIENT, decode.items(make_request("a", stream=False)))
    decode.executor.generate("a", 1)
    assert reply.wait_for(1)[0].token_ids == [1]


def test_a_channel_may_be_opened_after_the_bundle(decode: DrivenStage) -> None:
    decode.submit_bundle("a")
    decode.executor.generate("a", 1)
    decode.executor.generate("a", 2, reason=FinishReason.STOP)
    (stream,) = streams_of(decode.open_channel().wait_for_ends()).values()
    assert stream.token_ids == [1, 2]


def test_without_coalescing_every_token_is_a_burst() -> None:
    decode = DrivenStage(coalesce=False)
    reply = decode.open_channel()
    decode.submit_bundle("a", "b")
    decode.executor.generate_for({"a": (1, 2), "b": (3,)}, ends=["a"])
    bursts = reply.wait_for_ends()
    assert [burst.token_ids for burst in bursts] == [[1], [2], [3]]
    assert streams_of(bursts)[0].token_ids == [1, 2]
    decode.close()


def test_each_channel_has_a_window_of_its_own() -> None:
    sizes: list[int] = []

    def create_window(size: int) -> SendWindow:
        sizes.append(size)
        return SendWindow(size)

    decode = DrivenStage(create_window=create_window)
    addresses = set()
    for client_id in "ab":
        decode.submit_bundle(client_id, client_id=client_id)
        decode.executor.generate(client_id, 1)
        addresses.add(decode.open_channel(client_id).wait_for(1)[0].ack_address)
    assert (len(addresses), len(sizes)) == (2, 3)
    decode.close()


def test_logprobs_belong_to_the_tokens_that_are_sent(decode: DrivenStage) -> None:
    """Also of a request whose tokens beyond max_tokens are dropped."""
    reply = decode.open_channel()
    decode.submit_bundle("a", max_tokens=2)
    decode.submit_bundle("b")
    tops = tuple(((token_id,), (-0.5,)) for token_id in (1, 2, 3))
    numbers = [decode.executor.number_of(key) for key in "ab"]
    logprobs = {numbers[0]: RequestLogprobs((-0.1, -0.2, -0.3), tops, PromptLogprobs((-9.0,)))}
    decode.executor.emit(make_step({numbers[0]: (1, 2, 3), numbers[1]: (4,)}, logprobs=logprobs))
    stream = streams_of(reply.wait_for_ends())[0]
    assert (stream.token_ids, stream.logprobs, stream.top_logprobs) == ([1, 2], [-0.1, -0.2], list(tops[:2]))
    assert stream.prompt_logprobs == PromptLogprobs((-9.0,))
    assert stream.end == StreamEnd(0, FinishReason.LENGTH)
    assert decode.executor.cancelled == ["a"]


def test_a_request_for_the_logprobs_of_its_prompt_has_no_tokens(decode: DrivenStage) -> None:
    reply = decode.open_channel()
    request = replace(make_request("a", max_tokens=0), return_logprobs=True, return_prompt_logprobs=True)
    decode.stage.submit_bundle(CLIENT, decode.items(request))
    prompt = PromptLogprobs((-1.0, None), (((7,), (-0.1,)), ((8,), (-0.2,))))
    decode.executor.generate("a", reason=FinishReason.LENGTH, logprobs=RequestLogprobs(prompt_logprobs=prompt))
    stream = streams_of(reply.wait_for_ends())[0]
    assert (stream.token_ids, stream.prompt_logprobs) == ([], prompt)
    assert stream.end == StreamEnd(0, FinishReason.LENGTH)


def test_a_request_for_no_tokens_ends_without_the_executor(decode: DrivenStage) -> None:
    reply = decode.open_channel()
    decode.submit_bundle("a", max_tokens=0)
    stream = streams_of(reply.wait_for_ends())[0]
    assert (stream.start is not None, stream.end) == (True, StreamEnd(0, FinishReason.LENGTH))
    assert decode.executor.submitted == []


def test_requests_with_and_without_a_channel_run_side_by_side(decode: DrivenStage) -> None:
    reply = decode.open_channel()
    decode.submit_bundle("on channel")
    decode.submit("own")
    decode.submit("whole", stream=False)
    keys = ("own", "on channel", "whole")
    decode.executor.generate_for({key: (index, index + 10) for index, key in enumerate(keys)})
    decode.executor.generate_for({key: (index + 20,) for index, key in enumerate(keys)}, ends=keys)
    assert streams_of(reply.wait_for_ends())[0].token_ids == [1, 11, 21]
    chunks = decode.sender.wait_for_endings(2)
    tokens = {key: [token for chunk in chunks if chunk.key == key for token in chunk.token_ids] for key in keys}
    assert (tokens["own"], tokens["whole"], tokens["on channel"]) == ([0, 10, 20], [2, 12, 22], [])


# --- Errors ----------------------------------------------------------------------------------------------------------


def test_the_error_of_one_request_does_not_affect_the_others(decode: DrivenStage) -> None:
    reply = decode.open_channel()
    decode.stage.submit_bundle(CLIENT, decode.items(make_request("a"), INVALID, make_request("c")))
    decode.executor.generate_for({"a": (1,), "c": (2,)}, ends=["a", "c"])
    bursts = reply.wait_for_ends(3)
    assert codes_of(bursts) == {0: None, 1: ErrorCode.CONTEXT_LENGTH_EXCEEDED, 2: None}
    (error,) = [end.error for burst in bursts for end in burst.ends if end.error]
    assert (error.message, error.param) == (INVALID.message, "prompt")


def test_an_item_without_a_request_gets_an_internal_error(decode: DrivenStage) -> None:
    reply = decode.open_channel()
    decode.stage.submit_bundle(CLIENT, [replace(item, error=None) for item in decode.items(INVALID)])
    assert codes_of(reply.wait_for_ends()) == {0: ErrorCode.INTERNAL_ERROR}


@pytest.mark.parametrize(
    ("error", "code"),
    [(REFUSAL, ErrorCode.ENGINE_UNAVAILABLE), (ZeroDivisionError(), ErrorCode.INTERNAL_ERROR)],
    ids=["refuses", "has a bug"],
)
def test_a_request_that_the_executor_does_not_accept_ends_with_an_error(
    decode: DrivenStage, error: Exception, code: ErrorCode
) -> None:
    reply = decode.open_channel()
    decode.executor.on_submit = raising(error)
    decode.submit_bundle("a", "b")
    assert codes_of(reply.wait_for_ends(2)) == {0: code, 1: code}


def test_a_full_queue_refuses_with_the_limit_and_a_time_to_retry(decode: DrivenStage) -> None:
    reply = decode.open_channel()
    decode.executor.queued_requests = 101
    decode.submit_bundle("a")
    (end,) = (end for burst in reply.wait_for_ends() for end in burst.ends)
    assert end.error is not None
    assert (end.error.code, end.error.retry_after_s is not None) == (ErrorCode.QUEUE_FULL, True)
    assert "100" in end.error.message


def test_a_key_in_use_is_refused_and_the_first_request_goes_on(decode: DrivenStage) -> None:
    reply = decode.open_channel()
    decode.submit("own")
    decode.submit_bundle("a", "a", "own")
    decode.executor.generate("a", 1, reason=FinishReason.STOP)
    bursts = reply.wait_for_ends(3)
    assert codes_of(bursts) == {0: None, 1: ErrorCode.VALUE_OUT_OF_RANGE, 2: ErrorCode.VALUE_OUT_OF_RANGE}
    assert streams_of(bursts)[0].token_ids == [1]


def test_a_token_id_outside_the_vocabulary_fails_its_request_after_its_earlier_tokens(decode: DrivenStage) -> None:
    reply = decode.open_channel()
    decode.submit_bundle("a", "b")
    decode.executor.generate_for({"a": (1,), "b": (1,)})
    decode.executor.generate_for({"a": (2, VOCAB_SIZE), "b": (2,)}, ends=["b"])
    bursts = reply.wait_for_ends(2)
    streams = streams_of(bursts)
    assert (streams[0].token_ids, streams[1].token_ids) == ([1], [1, 2])
    assert codes_of(bursts) == {0: ErrorCode.INTERNAL_ERROR, 1: None}
    assert decode.executor.cancelled == ["a"]


def test_a_step_that_is_invalid_fails_the_requests_that_it_names_and_no_other(decode: DrivenStage) -> None:
    reply = decode.open_channel()
    decode.submit_bundle("a", "b", "c")
    numbers = [decode.executor.number_of(key) for key in "ab"]
    decode.executor.emit(EngineStep(np.array(numbers[:1]), np.array([1, 2]), ends=[RequestEnd(numbers[1])]))
    decode.executor.generate("c", 1, reason=FinishReason.STOP)
    codes = codes_of(reply.wait_for_ends(3))
    assert codes == {0: ErrorCode.INTERNAL_ERROR, 1: ErrorCode.INTERNAL_ERROR, 2: None}


def test_tokens_after_the_end_are_ignored(decode: DrivenStage) -> None:
    reply = decode.open_channel()
    decode.submit_bundle("a", "b")
    decode.executor.generate("a", 1, reason=FinishReason.STOP)
    decode.executor.generate("a", 2)
    decode.executor.generate("a", reason=FinishReason.LENGTH)
    decode.executor.generate("b", 3, reason=FinishReason.STOP)
    bursts = reply.wait_for_ends(2)
    assert codes_of(bursts) == {0: None, 1: None}
    assert streams_of(bursts)[0].token_ids == [1]


# --- Cancellation and leases -----------------------------------------------------------------------------------------


def test_a_cancellation_reaches_the_executor_and_its_end_the_channel(decode: DrivenStage) -> None:
    reply = decode.open_channel()
    decode.submit_bundle("a", "b")
    decode.stage.cancel("b")
    assert decode.executor.cancelled == ["b"]
    decode.executor.generate("b", reason=FinishReason.CANCELLED)
    assert reply.wait_for_ends()[0].ends == [StreamEnd(1, FinishReason.CANCELLED)]
    assert decode.stage.stats().cancelled_total == 1


def test_a_cancellation_may_come_before_its_bundle(decode: DrivenStage) -> None:
    decode.stage.cancel("b")
    decode.submit_bundle("a", "b")
    assert decode.executor.cancelled == ["b"]


def test_a_cancellation_may_come_during_the_executors_submit(decode: DrivenStage) -> None:
    """The executor does not have the number yet when the first cancellation arrives."""
    known_when_cancelled: list[bool] = []

    def cancel(request: GenerationRequest) -> None:
        if request.key == "b":
            decode.stage.cancel(request.key)

    decode.executor.on_submit = cancel
    decode.executor.on_cancel = lambda key: known_when_cancelled.append(key in decode.executor.live)
    decode.submit_bundle("a", "b", "c")
    assert known_when_cancelled == [False, True]
    assert decode.executor.cancelled == ["b", "b"]


def test_requests_of_a_client_that_is_gone_are_cancelled_and_no_other() -> None:
    decode = DrivenStage(timeouts=DecodeTimeouts(lease_s=0.2, tick_s=0.01))
    replies = {client_id: decode.open_channel(client_id) for client_id in ("dead", "alive")}
    decode.executor.on_cancel = lambda key: decode.executor.generate(key, reason=FinishReason.CANCELLED)
    decode.submit_bundle("a", "b", client_id="dead")
    decode.submit_bundle("c", client_id="alive")
    stopping = threading.Event()

    def renew() -> None:
        while not stopping.wait(0.001):
            decode.stage.renew("alive", received=0)

    alive = threading.Thread(target=renew)
    alive.start()
    try:
        assert codes_of(replies["dead"].wait_for_ends(2)) == {0: None, 1: None}
        assert sorted(decode.executor.cancelled) == ["a", "b"]
        assert replies["alive"].bursts == []
    finally:
        stopping.set()
        alive.join()
        decode.close()


def test_a_cancelled_request_that_the_executor_does_not_end_ends_once() -> None:
    decode = DrivenStage(timeouts=DecodeTimeouts(cancel_s=0.05, tick_s=0.01))
    reply = decode.open_channel()
    decode.submit_bundle("a", "b")
    decode.stage.cancel("a")
    reply.wait_for_ends()
    decode.executor.generate("a", 1, reason=FinishReason.STOP)
    decode.executor.generate("b", 1, reason=FinishReason.STOP)
    assert codes_of(reply.wait_for_ends(2)) == {0: None, 1: None}
    decode.close()


def test_bursts_wait_until_the_heartbeat_reports_that_the_client_has_read() -> None:
    decode = DrivenStage(channel_limits=ChannelLimits(linger_s=0.01, max_unread_bytes=1))
    reply = decode.open_channel()
    decode.submit_bundle("a")
    decode.executor.generate("a", 1)
    reply.wait_for(1)
    for token_id in (2, 3):
        decode.executor.generate("a", token_id)
    decode.stage.renew(CLIENT)
    decode.stage.renew("another", received=1)
    assert len(reply.bursts) == 1
    decode.stage.renew(CLIENT, received=1)
    assert reply.wait_for(2)[1].token_ids == [2, 3]
    decode.stage.renew(CLIENT, received=2)
    decode.close()


# --- Counts and shutdown ---------------------------------------------------------------------------------------------


def test_changes_are_reported_at_the_start_the_first_token_and_the_end(decode: DrivenStage) -> None:
    def changes() -> Iterator[bool]:
        before = decode.changes
        decode.submit_bundle("a")
        yield decode.changes > before
        for token_id, reason in ((1, None), (2, None), (3, FinishReason.STOP)):
            before = decode.changes
            decode.executor.generate("a", token_id, reason=reason)
            yield decode.changes > before

    assert list(changes()) == [True, True, False, True]


def test_close_ends_every_request_and_every_channel(decode: DrivenStage) -> None:
    replies = {client_id: decode.open_channel(client_id) for client_id in ("a", "b", "idle")}
    decode.submit_bundle("a1", "a2", client_id="a")
    decode.submit_bundle("b1", client_id="b")
    decode.executor.generate("a1", 1)
    decode.stage.close()
    assert all(reply.is_finished for reply in replies.values())
    ends = {client_id: [end for burst in reply.bursts for end in burst.ends] for client_id, reply in replies.items()}
    assert ends["a"] == [StreamEnd(slot, FinishReason.CANCELLED) for slot in (0, 1)]
    assert ends["b"] == [StreamEnd(2, FinishReason.CANCELLED)]


def test_a_bundle_after_close_gets_errors(decode: DrivenStage) -> None:
    decode.open_channel()
    decode.submit_bundle("a")
    decode.stage.close()
    decode.submit_bundle("b")
    assert codes_of(decode.open_channel().wait_for_ends()) == {1: ErrorCode.ENGINE_UNAVAILABLE}


def test_close_waits_until_a_request_that_is_being_submitted_has_its_end(decode: DrivenStage) -> None:
    reply = decode.open_channel()
    closing = threading.Thread(target=decode.stage.close)

    def close_and_refuse(_request: GenerationRequest) -> None:
        closing.start()
        closing.join(0.2)
        assert closing.is_alive(), "the stage is closed while a request has no end"
        raise REFUSAL

    decode.executor.on_submit = close_and_refuse
    decode.submit_bundle("a")
    assert codes_of(reply.wait_for_ends()) == {0: ErrorCode.ENGINE_UNAVAILABLE}
    closing.join(DEADLINE_S)
    assert not closing.is_alive()


def test_close_does_not_wait_longer_than_its_limit_for_a_client_without_a_channel() -> None:
    decode = DrivenStage(timeouts=DecodeTimeouts(close_s=0.1))
    decode.submit_bundle("a")
    closing = threading.Thread(target=decode.stage.close)
    closing.start()
    closing.join(DEADLINE_S / 2)
    assert not closing.is_alive()
