"""Text bursts as JSON: whole or in parts, plain chunks or any other, they arrive as they were written."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llm_pipeline.protocol.channel import TextBurst
from llm_pipeline.protocol.channel_json import (
    LOST_BURST,
    TextColumns,
    join_text_parts,
    text_burst_from_json,
    text_burst_to_json,
)
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.protocol.messages import FinishReason, TextChunk
from tests.support.message_strategies import token_ids

slots = st.integers(0, 2**53)
plain_chunks = st.builds(TextChunk, st.text(), st.integers(0, 10**6))
chunks = plain_chunks | st.builds(
    TextChunk,
    st.text(),
    st.integers(0, 10**6),
    token_ids=st.none() | token_ids,
    prompt_tokens=st.none() | st.integers(0, 10**6),
    finish_reason=st.none() | st.sampled_from(FinishReason),
    logprobs_json=st.none() | st.just('{"tokens":["\u00e9"]}'.encode()),
    token_logprobs=st.none() | st.lists(st.floats(-50, 0), max_size=3).map(tuple),
    cumulative_logprob=st.none() | st.floats(-50, 0),
)
bursts = st.builds(
    TextBurst,
    st.integers(0, 2**53),
    st.lists(st.tuples(slots, chunks), max_size=8),
    st.lists(st.tuples(slots, st.none()), max_size=3),
)


@given(bursts)
def test_a_burst_survives(burst: TextBurst) -> None:
    assert text_burst_from_json(text_burst_to_json(burst)) == burst


@given(st.lists(bursts, max_size=4), st.integers(0, 2**53))
def test_parts_are_read_as_one_burst_in_their_order(parts: list[TextBurst], serial: int) -> None:
    written = []
    for part in parts:
        columns = TextColumns()
        for slot, chunk in part.chunks:
            columns.add(slot, chunk)
        for slot, error in part.ends:
            columns.end(slot, error)
        written.append(columns.to_json())
    assert text_burst_from_json(join_text_parts(serial, written)) == TextBurst(
        serial, [chunk for part in parts for chunk in part.chunks], [end for part in parts for end in part.ends]
    )


def test_the_error_of_a_request_survives() -> None:
    error = PipelineError(ErrorCode.QUEUE_FULL, "Full.", param="prompt", retry_after_s=1.5)
    [(slot, arrived)] = text_burst_from_json(text_burst_to_json(TextBurst(0, [], [(5, error)]))).ends
    assert (slot, type(arrived), vars(arrived)) == (5, PipelineError, vars(error))


def test_a_lost_burst_has_a_serial_that_no_client_expects() -> None:
    assert text_burst_from_json(LOST_BURST) == TextBurst(-1, [], [])
