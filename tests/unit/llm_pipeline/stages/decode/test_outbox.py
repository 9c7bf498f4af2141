"""An outbox gathers the output of engine steps and gives it back as numbered chunks."""

from __future__ import annotations

from typing import Any

from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.protocol.messages import FinishReason, PromptLogprobs, RequestEnd, RequestLogprobs
from llm_pipeline.stages.decode.outbox import Outbox
from tests.support.driven_stage import RecordingSender
from tests.support.sample_requests import make_request


def make_outbox(*, stream: bool = True, **text_options: Any) -> Outbox:
    return Outbox(make_request("a", stream=stream, **text_options), RecordingSender())


def gather(outbox: Outbox, *token_ids: int, reason: FinishReason | None = None) -> None:
    outbox.add(token_ids)
    if reason is not None:
        outbox.end = RequestEnd(0, reason)


def test_a_chunk_takes_all_tokens_that_have_gathered() -> None:
    outbox = make_outbox()
    gather(outbox, 1)
    gather(outbox, 2, 3)
    assert outbox.take_chunk().token_ids == (1, 2, 3)
    assert not outbox.is_ready


def test_the_ending_travels_with_the_tokens_that_have_gathered() -> None:
    outbox = make_outbox()
    gather(outbox, 1)
    gather(outbox, 2, reason=FinishReason.STOP)
    chunk = outbox.take_chunk()
    assert (chunk.token_ids, chunk.finish_reason) == ((1, 2), FinishReason.STOP)
    assert not outbox.is_ready


def test_a_chunk_may_be_limited_and_then_only_the_last_is_final() -> None:
    outbox = make_outbox()
    gather(outbox, 1, 2)
    gather(outbox, 3, reason=FinishReason.LENGTH)
    chunks = [outbox.take_chunk(max_tokens=1) for _ in range(3)]
    assert [chunk.token_ids for chunk in chunks] == [(1,), (2,), (3,)]
    assert [chunk.is_final for chunk in chunks] == [False, False, True]
    assert not outbox.is_ready


def test_an_ending_without_tokens_is_a_chunk() -> None:
    outbox = make_outbox()
    gather(outbox, reason=FinishReason.STOP)
    chunk = outbox.take_chunk(max_tokens=1)
    assert (chunk.token_ids, chunk.finish_reason) == ((), FinishReason.STOP)


def test_chunks_are_numbered_and_the_first_carries_the_text_options() -> None:
    outbox = make_outbox(stop=("x",))
    chunks = []
    for token_id in range(3):
        gather(outbox, token_id)
        chunks.append(outbox.take_chunk(ack_address="here"))
    assert [chunk.index for chunk in chunks] == [0, 1, 2]
    assert chunks[0].text_options is not None
    assert chunks[0].text_options.stop == ("x",)
    assert [chunk.text_options for chunk in chunks[1:]] == [None, None]
    assert {chunk.ack_address for chunk in chunks} == {"here"}


def test_a_stream_is_ready_with_each_token_and_another_request_at_its_end() -> None:
    stream, whole = make_outbox(stream=True), make_outbox(stream=False)
    assert not stream.is_ready
    for outbox in (stream, whole):
        gather(outbox, 1)
    assert (stream.is_ready, whole.is_ready) == (True, False)
    gather(whole, 2, reason=FinishReason.STOP)
    assert whole.is_ready


def test_a_step_without_output_makes_no_chunk() -> None:
    outbox = make_outbox()
    gather(outbox)
    assert not outbox.is_ready


def test_logprobs_travel_with_their_tokens_and_prompt_logprobs_with_the_first_chunk() -> None:
    outbox = make_outbox()
    prompt = PromptLogprobs((-1.0, -2.0), ())
    tops = tuple(((token_id,), (-0.5,)) for token_id in (1, 2, 3))
    gather(outbox, 1, 2)
    outbox.add_logprobs(RequestLogprobs((-0.1, -0.2), tops[:2], prompt), 2)
    gather(outbox, 3)
    outbox.add_logprobs(RequestLogprobs((None,), tops[2:]), 1)
    chunks = [outbox.take_chunk(max_tokens=2), outbox.take_chunk(max_tokens=2)]
    assert [chunk.logprobs for chunk in chunks] == [(-0.1, -0.2), (None,)]
    assert [chunk.top_logprobs for chunk in chunks] == [tops[:2], tops[2:]]
    assert [chunk.prompt_logprobs for chunk in chunks] == [prompt, None]


def test_logprobs_of_dropped_tokens_are_dropped() -> None:
    outbox = make_outbox()
    gather(outbox, 1)
    outbox.add_logprobs(RequestLogprobs((-0.1, -0.2), (((1,), (-0.5,)), ((2,), (-0.5,)))), 1)
    chunk = outbox.take_chunk()
    assert (chunk.logprobs, chunk.top_logprobs) == ((-0.1,), (((1,), (-0.5,)),))


def test_an_error_replaces_all_that_is_unsent() -> None:
    outbox = make_outbox()
    gather(outbox, 1, reason=FinishReason.STOP)
    chunk = outbox.take_error()
    assert chunk.error is not None
    assert (chunk.error.code, chunk.index, chunk.token_ids) == (ErrorCode.INTERNAL_ERROR, 0, ())
    assert chunk.text_options is not None
    assert not outbox.is_ready


def test_the_error_of_a_step_ends_the_request_after_its_tokens() -> None:
    outbox = make_outbox()
    gather(outbox, 1)
    error = PipelineError(ErrorCode.ENGINE_UNAVAILABLE, "The engine has stopped.")
    outbox.end = RequestEnd(0, error=error)
    chunk = outbox.take_chunk()
    assert (chunk.token_ids, chunk.error) == ((1,), error)
