"""Requests and token chunks as JSON between our own stages."""

from __future__ import annotations

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_pipeline.protocol import tensors, wire_json
from llm_pipeline.protocol.arrays import array
from llm_pipeline.protocol.errors import ErrorCode, PipelineError, internal_error
from llm_pipeline.protocol.field_kinds import NamedArrays
from llm_pipeline.protocol.messages import (
    FinishReason,
    GenerationRequest,
    PromptLogprobs,
    TextOptions,
    TokenChunk,
)
from tests.support.message_strategies import (
    counts,
    flags,
    guides,
    keys,
    log_probs,
    reader,
    samplings,
    text_options,
    token_ids,
    tops,
)


def read_request(arrays: NamedArrays) -> GenerationRequest:
    return wire_json.request_from_json(wire_json.read_prepared(reader(arrays)))


@given(
    st.builds(
        GenerationRequest,
        key=keys,
        prompt_ids=token_ids.filter(len),
        max_tokens=counts,
        sampling=samplings,
        stop_token_ids=token_ids,
        text_options=text_options,
        stop_token_sequences=st.lists(token_ids.filter(len), max_size=2).map(tuple),
        return_logprobs=flags,
        num_top_logprobs=st.integers(0, 20),
        return_prompt_logprobs=flags,
        guide=guides,
        urgency=st.floats(0, 1),
        time_limit_s=st.none() | st.floats(0, 100),
        cache_salt=st.none() | st.integers(0, 2**64 - 1),
    )
)
def test_a_request_survives(request: GenerationRequest) -> None:
    assert read_request(wire_json.request_to_arrays(request)) == request


@given(keys, st.integers(0, 10**6), token_ids, st.none() | text_options, st.none() | st.sampled_from(FinishReason))
def test_a_token_chunk_survives(
    key: str, index: int, ids: tuple[int, ...], text: TextOptions | None, reason: FinishReason | None
) -> None:
    chunk = TokenChunk(key, index, ids, text, reason)
    assert wire_json.token_chunk_from_arrays(reader(wire_json.token_chunk_to_arrays(chunk))) == chunk


@given(st.sampled_from(ErrorCode), st.text(), st.none() | st.sampled_from(["prompt", "max_tokens"]))
def test_a_token_chunks_error_survives(code: ErrorCode, message: str, param: str | None) -> None:
    chunk = TokenChunk("key", 0, (), error=PipelineError(code, message, param=param))
    arrived = wire_json.token_chunk_from_arrays(reader(wire_json.token_chunk_to_arrays(chunk)))
    assert arrived.is_final
    assert arrived.error is not None
    assert (arrived.error.code, arrived.error.message, arrived.error.param) == (code, message, param)


def test_unreadable_error_still_ends_the_request() -> None:
    chunk = TokenChunk("key", 0, (), error=PipelineError(ErrorCode.INVALID_TYPE, "wrong", param="not a name!"))
    arrived = wire_json.token_chunk_from_arrays(reader(wire_json.token_chunk_to_arrays(chunk)))
    assert arrived.error is not None
    assert arrived.error.message == internal_error().message


@given(
    st.builds(
        TokenChunk,
        key=keys,
        index=counts,
        token_ids=token_ids,
        text_options=st.none() | text_options,
        finish_reason=st.none() | st.sampled_from(FinishReason),
        logprobs=st.lists(log_probs, max_size=5).map(tuple),
        top_logprobs=tops,
        prompt_logprobs=st.none()
        | st.builds(PromptLogprobs, values=st.lists(log_probs, max_size=5).map(tuple), tops=tops),
    )
)
def test_token_chunk_with_logprobs_survives(chunk: TokenChunk) -> None:
    assert wire_json.token_chunk_from_arrays(reader(wire_json.token_chunk_to_arrays(chunk))) == chunk


@pytest.mark.parametrize("sent", [None, b"", b"{}", b"no json", b"\xff", b'{"key": "k", "prompt_ids": ["a"]}'])
def test_decode_rejects_requests_not_made_by_preprocess(sent: bytes | None) -> None:
    arrays = [] if sent is None else [(tensors.REQUEST, array(tensors.REQUEST, sent))]
    with pytest.raises(PipelineError, match="preprocess"):
        read_request(arrays)


@pytest.mark.parametrize("address", [["x"], 5, {"a": 1}], ids=str)
def test_ack_address_of_a_wrong_type_is_ignored(address: object) -> None:
    """Direct callers of postprocess may send anything; acks for other clients must continue."""
    wire = orjson.dumps({"key": "key", "index": 0, "token_ids": [], "ack_address": address})
    chunk = np.array([wire], dtype=np.object_)
    assert wire_json.token_chunk_from_arrays(lambda name: chunk).ack_address is None
