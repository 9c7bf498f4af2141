"""The span of each completion request: its parent, attributes, events and status, and what it never contains."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind, StatusCode

from frontend.backends.fake import FakeGenerator, forever
from frontend.observability.request_record import RequestRecord
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from tests.support.app import KEY, MODEL, in_process, real_server, until
from tests.support.tracing import PARENT_ID, TRACE_ID, TRACEPARENT, Traced

HEADERS = {"traceparent": TRACEPARENT, "tracestate": "vendor=1", "x-request-id": "mine"}


@pytest.fixture
def traced() -> Iterator[Traced]:
    traced = Traced()
    yield traced
    traced.tracing.close()


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def events(span: ReadableSpan) -> dict[str, int]:
    return {event.name: event.timestamp for event in span.events}


async def complete(traced: Traced, headers: dict[str, str] | None = None, **fields: object) -> FakeGenerator:
    async with in_process(tracing=traced.tracing) as app:
        body = {"model": MODEL, "prompt": "Hi", **fields}
        await app.client.post("/v1/completions", json=body, headers=headers or HEADERS)
        return app.generator


async def test_a_completion_is_one_span_below_the_clients(traced: Traced) -> None:
    await complete(traced, max_tokens=3, temperature=0.5, seed=7, n=2)
    span = traced.span()
    assert (span.name, span.kind) == (f"text_completion {MODEL}", SpanKind.SERVER)
    assert span.context is not None
    assert span.parent is not None
    assert f"{span.context.trace_id:032x}" == TRACE_ID
    assert f"{span.parent.span_id:016x}" == PARENT_ID
    assert span.context.trace_state.to_header() == "vendor=1"
    found = attributes(span)
    assert found.pop("gen_ai.response.id").startswith("cmpl-")
    assert found == {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": "triton_completions",
        "gen_ai.request.model": MODEL,
        "gen_ai.response.model": MODEL,
        "gen_ai.request.max_tokens": 3,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.seed": 7,
        "gen_ai.request.choice.count": 2,
        "gen_ai.request.stream": False,
        "gen_ai.response.finish_reasons": ("length", "length"),
        "gen_ai.usage.input_tokens": 5,
        "gen_ai.usage.output_tokens": 6,
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "url.path": "/v1/completions",
        "completions.request_id": "mine",
    }
    assert span.status.status_code is StatusCode.UNSET


async def test_the_events_of_a_stream_are_in_order(traced: Traced) -> None:
    await complete(traced, stream=True, max_tokens=3)
    span = traced.span()
    times = events(span)
    assert list(times) == ["queued", "first_token"]
    assert span.start_time is not None
    assert span.end_time is not None
    assert span.start_time <= times["queued"] <= times["first_token"] <= span.end_time
    first_chunk_s = attributes(span)["gen_ai.response.time_to_first_chunk"]
    assert first_chunk_s * 1e9 == pytest.approx(times["first_token"] - span.start_time, abs=1e6)


async def test_every_choice_gets_the_span_and_its_own_number(traced: Traced) -> None:
    generator = await complete(traced, prompt=["a", "b"], n=2)
    span = traced.span()
    assert span.context is not None
    contexts = [parameters.trace for parameters in generator.requests]
    assert [context and context.choice for context in contexts] == [0, 1, 2, 3]
    wanted = f"00-{TRACE_ID}-{span.context.span_id:016x}-01"
    assert {(context.traceparent, context.tracestate) for context in contexts if context} == {(wanted, "vendor=1")}


@pytest.mark.parametrize(
    ("fields", "key", "status", "error"),
    [
        ({"max_tokens": 0}, KEY, 400, "value_out_of_range"),
        ({}, "mistyped", 401, "invalid_api_key"),
        ({"model": "unknown"}, KEY, 404, "model_not_found"),
        ({"max_tokens": "many"}, KEY, 400, "invalid_type"),
    ],
)
async def test_a_refused_request_has_a_span_with_its_error(
    traced: Traced, fields: dict[str, object], key: str, status: int, error: str
) -> None:
    async with in_process(tracing=traced.tracing) as app:
        body = {"model": MODEL, "prompt": "Hi", **fields}
        headers = {**HEADERS, "authorization": f"Bearer {key}"}
        assert (await app.client.post("/v1/completions", json=body, headers=headers)).status_code == status
    span = traced.span()
    assert (attributes(span)["http.response.status_code"], attributes(span)["error.type"]) == (status, error)
    assert span.status.status_code is StatusCode.UNSET, "the client's error"
    assert events(span) == {}


async def test_a_request_beyond_the_limit_has_a_span(traced: Traced) -> None:
    async with in_process(FakeGenerator(forever()), tracing=traced.tracing, max_in_flight=1) as app:
        first = asyncio.create_task(app.complete())
        await until(lambda: bool(app.generator.running))
        assert (await app.complete()).status_code == 429
        await app.generator.cancel(app.generator.requests[0].request_key)
        await first
    _, refused = traced.spans()
    assert attributes(refused)["http.response.status_code"] == 429
    assert attributes(refused)["error.type"] == "queue_full"


async def test_an_unknown_model_names_no_span(traced: Traced) -> None:
    """A client could make any number of names."""
    await complete(traced, model="a-name-of-the-client")
    span = traced.span()
    assert span.name == "text_completion"
    assert "a-name-of-the-client" not in span.to_json()


@pytest.mark.parametrize("stream", [True, False])
async def test_a_failure_of_the_engine_is_an_error_of_the_span(traced: Traced, stream: bool) -> None:
    error = PipelineError(ErrorCode.ENGINE_UNAVAILABLE, "gone")
    async with in_process(FakeGenerator(lambda _: [error]), tracing=traced.tracing) as app:
        await app.complete(stream=stream)
    span = traced.span()
    assert (attributes(span)["http.response.status_code"], attributes(span)["error.type"]) == (
        503,
        "engine_unavailable",
    )
    assert span.status.status_code is StatusCode.ERROR


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_is_an_event_with_the_reason(traced: Traced, stream: bool) -> None:
    async with real_server(FakeGenerator(forever()), tracing=traced.tracing) as app:
        body = json.dumps({"model": MODEL, "prompt": "Hi", "stream": stream})
        _, writer = await asyncio.open_connection(app.client.base_url.host, app.client.base_url.port)
        fields = f"Host: localhost\r\nAuthorization: Bearer {KEY}\r\nContent-Length: {len(body)}\r\n"
        writer.write(f"POST /v1/completions HTTP/1.1\r\n{fields}\r\n{body}".encode())
        await until(lambda: bool(app.generator.running))
        writer.close()
        await until(lambda: not app.generator.running)
    span = traced.span()
    (cancelled,) = [event for event in span.events if event.name == "cancelled"]
    assert dict(cancelled.attributes or {}) == {"completions.cancel_reason": "client_gone"}
    assert attributes(span)["error.type"] == "client_closed_request"
    assert span.status.status_code is StatusCode.UNSET


async def test_no_text_of_a_client_and_no_key_is_exported(traced: Traced) -> None:
    await complete(
        traced,
        prompt="a private prompt",
        stop=["a private stop"],
        suffix=None,
        logit_bias={"5": 1},
        user="a private user",
        guided_regex="private.*",
        stream=True,
    )
    exported = traced.span().to_json()
    assert "private" not in exported
    assert KEY not in exported
    assert "default" not in exported, "the key's name"
    assert " Paris" not in exported, "the completion"


@pytest.mark.parametrize("path", ["/health/live", "/metrics", "/v1/models"])
async def test_other_paths_have_no_span(traced: Traced, path: str) -> None:
    async with in_process(tracing=traced.tracing) as app:
        await app.client.get(path, headers=HEADERS)
        await app.client.options("/v1/completions", headers=HEADERS)
    assert traced.spans() == []


@pytest.mark.parametrize("sampler", ["parentbased_always_on", "traceidratio"])
async def test_an_unsampled_request_is_not_exported_nor_forwarded(
    monkeypatch: pytest.MonkeyPatch, sampler: str
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", sampler)
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0")
    traced = Traced()
    generator = await complete(traced, {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-00"})
    assert traced.spans() == []
    assert [parameters.trace for parameters in generator.requests] == [None]


async def test_the_sampler_of_the_environment_decides_without_a_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0")
    traced = Traced()
    await complete(traced, {"x-request-id": "without a parent"})
    await complete(traced)
    assert len(traced.spans()) == 1


def begin(traced: Traced, *headers: tuple[bytes, bytes]) -> str:
    """The trace id of a request with these headers."""
    record = RequestRecord("id", "POST", "/v1/completions", "http://localhost", False)
    trace = traced.tracing.begin(headers, record)
    trace.end(record)
    assert trace.context is not None
    return trace.context.traceparent.split("-")[1]


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"garbage",
        TRACEPARENT.encode()[:-1],
        TRACEPARENT.encode().replace(b"00-", b"ff-", 1),
        TRACEPARENT.upper().encode(),
        f"00-{'0' * 32}-{PARENT_ID}-01".encode(),
        f"00-{TRACE_ID}-{'0' * 16}-01".encode(),
        f"{TRACEPARENT}-more".encode(),
    ],
)
def test_a_malformed_parent_begins_a_new_trace(traced: Traced, sent: bytes) -> None:
    assert begin(traced, (b"traceparent", sent), (b"tracestate", b"vendor=1")) != TRACE_ID
    span = traced.span()
    assert span.parent is None
    assert span.context is not None
    assert not span.context.trace_state


def test_two_parents_begin_a_new_trace(traced: Traced) -> None:
    parent = (b"traceparent", TRACEPARENT.encode())
    assert begin(traced, parent, parent) != TRACE_ID


def test_several_states_are_joined(traced: Traced) -> None:
    begin(traced, (b"traceparent", TRACEPARENT.encode()), (b"tracestate", b"a=1"), (b"tracestate", b"b=2"))
    context = traced.span().context
    assert context is not None
    assert context.trace_state.to_header() == "a=1,b=2"


@given(parent=st.binary(max_size=80), state=st.binary(max_size=600))
def test_any_header_begins_a_trace(parent: bytes, state: bytes) -> None:
    traced = Traced()
    trace_id = begin(traced, (b"traceparent", parent), (b"tracestate", state))
    assert len(trace_id) == 32
    assert int(trace_id, 16)
    assert len(traced.spans()) == 1
