"""The messages of channels as JSON: what one side writes, the other reads."""

from __future__ import annotations

import math
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_pipeline.protocol.channel import (
    MAX_SLOT,
    BundleItem,
    PreparedItem,
    StreamEnd,
    StreamLogprobs,
    StreamStart,
    TextBurst,
    TokenBurst,
)
from llm_pipeline.protocol.channel_json import (
    BUNDLE_PREFIX,
    BURST_PREFIX,
    OPEN_CHANNEL_JSON,
    bundle_from_json,
    bundle_to_json,
    prepared_bundle_from_json,
    prepared_bundle_to_json,
    text_burst_from_json,
    text_burst_to_json,
    token_burst_from_json,
    token_burst_to_json,
)
from llm_pipeline.protocol.engine_metrics import EngineReport, RequestTimes, TracedRequest
from llm_pipeline.protocol.errors import ErrorCode, PipelineError, internal_error
from llm_pipeline.protocol.messages import (
    CompletionParameters,
    FinishReason,
    GenerationRequest,
    Guide,
    GuideType,
    PromptLogprobs,
    TextChunk,
)
from tests.support.message_strategies import (
    biases,
    counts,
    flags,
    guides,
    keys,
    log_probs,
    samplings,
    stops,
    text_options,
    token_ids,
    tops,
)
from tests.support.sample_requests import make_request

slots = st.integers(0, MAX_SLOT)
reasons = st.none() | st.sampled_from(FinishReason)
errors = st.builds(
    PipelineError,
    st.sampled_from(ErrorCode),
    st.text(),
    param=st.none() | st.sampled_from(["prompt", "max_tokens"]),
    retry_after_s=st.none() | st.sampled_from([0.0, 1.5, 120.0]),
)
parameters = st.builds(
    CompletionParameters,
    request_key=keys,
    request_id=st.text(),
    prompt_text=st.none() | st.text(),
    token_ids=st.none() | token_ids,
    max_tokens=st.none() | counts,
    temperature=st.none() | st.floats(0, 2),
    seed=st.none() | st.integers(-(2**63), 2**63 - 1),
    stop=stops,
    stream=flags,
    skip_special_tokens=flags,
    logit_bias=biases,
    bias_words=st.lists(st.tuples(st.text(min_size=1), st.floats(-100, 100)), max_size=3).map(tuple),
    bad_words=stops,
    stop_token_ids=token_ids,
    priority=st.none() | st.integers(-(2**31), 2**31 - 1),
    num_logprobs=st.none() | st.integers(0, 20),
    suffix=st.none() | st.text(),
    guide=guides,
)
requests = st.builds(
    GenerationRequest,
    key=keys,
    prompt_ids=token_ids.filter(len),
    max_tokens=counts,
    sampling=samplings,
    text_options=text_options,
    guide=guides,
    cache_salt=st.none() | st.integers(0, 2**64 - 1),
)


def form_of(error: PipelineError | None) -> tuple[Any, ...] | None:
    """The fields of an error, which compare where two errors do not."""
    return None if error is None else (error.code, error.message, error.param, error.retry_after_s)


# --- Bundles ---------------------------------------------------------------------------------------------------------


@given(st.lists(st.builds(BundleItem, slots, parameters), max_size=4))
def test_a_bundle_survives(items: list[BundleItem]) -> None:
    assert bundle_from_json(bundle_to_json(items)) == items


def test_default_values_are_not_sent() -> None:
    sent = orjson.loads(bundle_to_json([BundleItem(3, CompletionParameters("key", "id", prompt_text="Hello"))]))
    assert sent == [{"slot": 3, "parameters": {"request_key": "key", "request_id": "id", "prompt_text": "Hello"}}]


def test_the_clients_name_of_a_guide_is_not_sent() -> None:
    """The front end puts it into errors itself."""
    named = CompletionParameters("key", "id", guide=Guide(GuideType.JSON), guide_param="response_format")
    (item,) = bundle_from_json(bundle_to_json([BundleItem(0, named)]))
    assert item.parameters.guide_param == CompletionParameters("key", "id").guide_param


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"{}",
        b"no json",
        b"\xff",
        b"[null]",
        b'[{"slot": 1}]',
        b'[{"slot": "x", "parameters": {"request_key": "k", "request_id": "i"}}]',
        b'[{"slot": -1, "parameters": {"request_key": "k", "request_id": "i"}}]',
        b'[{"slot": 9223372036854775808, "parameters": {"request_key": "k", "request_id": "i"}}]',
        b'[{"slot": 1, "parameters": {"request_key": "k", "request_id": "i", "max_tokens": "many"}}]',
    ],
    ids=lambda sent: repr(sent)[:40],
)
def test_a_bundle_in_another_form_is_refused(sent: bytes) -> None:
    with pytest.raises(PipelineError, match="bundle is not in the form") as refusal:
        bundle_from_json(sent)
    assert (refusal.value.code, refusal.value.param) == (ErrorCode.INVALID_TYPE, "bundle")


@given(st.lists(st.tuples(slots, requests | errors), max_size=4))
def test_a_prepared_bundle_survives(sent: list[tuple[int, GenerationRequest | PipelineError]]) -> None:
    items = [
        PreparedItem(slot, error=content) if isinstance(content, PipelineError) else PreparedItem(slot, content)
        for slot, content in sent
    ]
    text = prepared_bundle_to_json(items)
    assert text.startswith(BUNDLE_PREFIX)
    arrived = prepared_bundle_from_json(text)
    assert [(item.slot, item.request, form_of(item.error)) for item in arrived] == [
        (item.slot, item.request, form_of(item.error)) for item in items
    ]


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"{}",
        b'{"bundle":1}',
        b'{"bundle":[1]}',
        b'{"bundle":["slot"]}',
        b'{"bundle":[{"slot":1}]}',
        b'{"bundle":[{"slot":1,"request":{}}]}',
        b'{"bundle":[{"slot":1,"error":5}]}',
    ],
    ids=repr,
)
def test_a_bundle_that_preprocess_did_not_write_is_refused(sent: bytes) -> None:
    with pytest.raises(PipelineError, match="preprocess"):
        prepared_bundle_from_json(sent)


def test_an_error_that_can_not_be_read_is_still_an_error() -> None:
    (item,) = prepared_bundle_from_json(b'{"bundle":[{"slot":1,"error":"something"}]}')
    assert form_of(item.error) == form_of(internal_error())


def test_messages_of_decodes_input_differ_from_their_first_bytes() -> None:
    single = orjson.dumps(make_request("a"))
    assert not single.startswith(BUNDLE_PREFIX)
    assert not OPEN_CHANNEL_JSON.startswith(BUNDLE_PREFIX)
    assert single != OPEN_CHANNEL_JSON


# --- Bursts ----------------------------------------------------------------------------------------------------------

prompts = st.none() | st.builds(PromptLogprobs, values=st.lists(log_probs, max_size=5).map(tuple), tops=tops)
unix_s = st.floats(0, 4e9)
reports = st.builds(
    EngineReport,
    numbers=st.dictionaries(keys, st.floats(0, 1e12) | st.integers(0, 2**53), max_size=4),
    times=st.lists(st.builds(RequestTimes, st.floats(0, 100), st.floats(0, 100)), max_size=3),
    traced=st.lists(
        st.builds(
            TracedRequest,
            keys,
            keys,
            choice=st.integers(0, 2**31),
            arrived_s=unix_s,
            ended_s=unix_s,
            begun_s=st.none() | unix_s,
            first_token_s=st.none() | unix_s,
            finish_reason=st.none() | st.sampled_from([reason.value for reason in FinishReason]),
            error=st.none() | st.sampled_from([code.value for code in ErrorCode]),
        ),
        max_size=2,
    ).map(tuple),
)
token_bursts = st.builds(
    TokenBurst,
    client_id=keys,
    serial=st.integers(0, 2**53),
    slots=st.lists(slots, max_size=5),
    counts=st.lists(st.integers(1, 9), max_size=5),
    token_ids=st.lists(st.integers(0, 2**31 - 1), max_size=9),
    starts=st.lists(st.builds(StreamStart, slots, keys, text_options), max_size=3),
    ends=st.lists(st.builds(StreamEnd, slots, reasons), max_size=3),
    logprobs=st.lists(
        st.builds(
            StreamLogprobs,
            slot=slots,
            logprobs=st.lists(log_probs, max_size=5).map(tuple),
            top_logprobs=tops,
            prompt_logprobs=prompts,
        ),
        max_size=3,
    ),
    ack_address=st.none() | keys,
    report=st.none() | reports,
)


@given(token_bursts)
def test_a_token_burst_survives(burst: TokenBurst) -> None:
    text = token_burst_to_json(burst)
    assert text.startswith(BURST_PREFIX)
    assert token_burst_from_json(text) == burst


@given(errors)
def test_the_error_of_a_token_burst_survives(error: PipelineError) -> None:
    burst = TokenBurst("front end", 0, ends=[StreamEnd(5, error=error)])
    (end,) = token_burst_from_json(token_burst_to_json(burst)).ends
    assert (end.slot, end.finish_reason, form_of(end.error)) == (5, None, form_of(error))


text_chunks = st.builds(
    TextChunk,
    text=st.text(),
    completion_tokens=st.integers(0, 2**31 - 1),
    token_ids=st.none() | token_ids,
    prompt_tokens=st.none() | counts,
    finish_reason=reasons,
    logprobs_json=st.none() | st.sampled_from([b'{"tokens":["a"]}', b"{}"]),
    token_logprobs=st.none() | st.lists(st.floats(-50, 0), max_size=4).map(tuple),
    cumulative_logprob=st.none() | st.floats(-50, 0),
    prompt_token_ids=st.none() | token_ids,
)


@given(
    st.integers(0, 2**53),
    st.lists(st.tuples(slots, text_chunks), max_size=6),
    st.lists(st.tuples(slots, st.none() | errors), max_size=3),
    st.none() | reports,
)
def test_a_text_burst_survives(
    serial: int,
    chunks: list[tuple[int, TextChunk]],
    ends: list[tuple[int, PipelineError | None]],
    report: EngineReport | None,
) -> None:
    arrived = text_burst_from_json(text_burst_to_json(TextBurst(serial, chunks, ends, report)))
    assert (arrived.serial, arrived.chunks, arrived.report) == (serial, chunks, report)
    assert [(slot, form_of(error)) for slot, error in arrived.ends] == [(slot, form_of(error)) for slot, error in ends]


def test_a_logprob_that_the_engine_does_not_have_stays_one() -> None:
    burst = TextBurst(0, [(1, TextChunk("a", 1, token_logprobs=(-0.5, math.nan)))])
    ((_, chunk),) = text_burst_from_json(text_burst_to_json(burst)).chunks
    assert chunk.token_logprobs is not None
    assert (chunk.token_logprobs[0], math.isnan(chunk.token_logprobs[1])) == (-0.5, True)


@pytest.mark.parametrize(
    "sent",
    [b"", b"[]", b"{}", b'{"serial":0,"slots":[1],"texts":[],"totals":[]}', b'{"serial":0,"slots":1}'],
    ids=repr,
)
def test_a_text_burst_of_another_release_raises(sent: bytes) -> None:
    with pytest.raises((ValueError, KeyError, TypeError)):
        text_burst_from_json(sent)
