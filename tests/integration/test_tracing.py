"""One trace through the front end and Triton, in a real OTLP receiver."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.otlp import ERROR_STATUS, SERVER_KIND, Collector, ReceivedSpan, children, running_collector
from tests.support.stack import MODEL, RunningStack, running_stack
from tests.support.waiting import wait_until

pytestmark = pytest.mark.triton

CLIENT_SPAN = "00f067aa0ba902b7"
_trace_numbers = itertools.count(1)
_TRITON = ("InferRequest", "ensemble", "preprocess", "compute", "decode", "compute")
_DECODE = ("decode.request", "decode.queue", "decode.prefill", "decode.generation")


@dataclass(frozen=True)
class TracedStack:
    """A stack of two front-end workers whose spans go to the collector."""

    stack: RunningStack
    collector: Collector

    def post(self, *, flags: str = "01", **body: Any) -> tuple[str, int]:
        """Sends a request in a new trace of the client; returns the trace's id and the status."""
        trace_id = f"{next(_trace_numbers):032x}"
        headers = {"traceparent": f"00-{trace_id}-{CLIENT_SPAN}-{flags}", "tracestate": "vendor=1"}
        with self.stack.client() as client:
            body = {"model": MODEL, "prompt": "a private prompt", "max_tokens": 10, **body}
            return trace_id, client.post("/openai/v1/completions", json=body, headers=headers).status_code

    def spans(self, trace_id: str, *, of_triton: int = 1, choices: int = 1) -> list[ReceivedSpan]:
        """The spans of a trace when all of them have arrived."""
        wanted = Counter({"server": 1})
        wanted += Counter(_TRITON * of_triton) + Counter(_DECODE * choices)
        return self.collector.wait_for_trace(trace_id, lambda spans: names(spans) == wanted)

    @property
    def log(self) -> list[dict[str, Any]]:
        lines = self.stack.frontend.log_path.read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]


def names(spans: list[ReceivedSpan]) -> Counter[str]:
    return Counter("server" if span.kind == SERVER_KIND and span.service != "triton" else span.name for span in spans)


def server_of(spans: list[ReceivedSpan]) -> ReceivedSpan:
    (server,) = [span for span in spans if span.parent_id == CLIENT_SPAN]
    return server


def only(spans: list[ReceivedSpan], name: str) -> ReceivedSpan:
    (found,) = [span for span in spans if span.name == name]
    return found


@pytest.fixture(scope="module")
def traced(engine_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TracedStack]:
    folder = tmp_path_factory.mktemp("traced")
    (folder / "collector").mkdir()
    with running_collector(folder / "collector") as collector:
        environment = {
            "EXECUTOR": "scripted",
            "SCRIPTED_STEPS_PER_S": "200",
            "FRONTEND_WORKERS": "2",
            "LOG_FORMAT": "json",
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.http_url,
            "OTEL_BSP_SCHEDULE_DELAY": "100",
        }
        with running_stack(folder, engine_dir, **environment) as stack:
            yield TracedStack(stack, collector)


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_one_trace_leads_from_the_client_into_tritons_models(traced: TracedStack, stream: bool) -> None:
    trace_id, status = traced.post(stream=stream)
    assert status == 200
    spans = traced.spans(trace_id)
    server = server_of(spans)
    assert children(spans, server) == ["InferRequest", "decode.request"]
    assert children(spans, only(spans, "InferRequest")) == ["ensemble"]
    assert children(spans, only(spans, "ensemble")) == ["preprocess", "decode"]
    decode = only(spans, "decode.request")
    assert children(spans, decode) == ["decode.queue", "decode.prefill", "decode.generation"]
    assert {span.service for span in spans} == {"triton-completions", "triton"}
    assert server.start_ns <= decode.start_ns <= decode.end_ns <= server.end_ns
    assert server.events.keys() == ({"queued", "first_token"} if stream else {"queued"})
    if stream:
        assert only(spans, "decode.prefill").end_ns <= server.events["first_token"]
    assert server.trace_state == decode.trace_state == "vendor=1"
    assert server.attributes["gen_ai.usage.output_tokens"] == 10
    assert "private" not in repr(spans)
    assert traced.stack.api_key not in repr(spans)


def test_all_choices_of_a_request_are_below_one_span(traced: TracedStack) -> None:
    trace_id, _ = traced.post(prompt=["a", "b"], n=2, stream=True)
    spans = traced.spans(trace_id, choices=4)
    server = server_of(spans)
    assert children(spans, server) == ["InferRequest", *["decode.request"] * 4]
    choices = [span.attributes["completions.choice"] for span in spans if span.name == "decode.request"]
    assert sorted(choices) == [0, 1, 2, 3]


def test_a_client_that_leaves_ends_the_spans_of_decode(traced: TracedStack) -> None:
    trace_id = f"{next(_trace_numbers):032x}"
    headers = {"traceparent": f"00-{trace_id}-{CLIENT_SPAN}-01"}
    body = {"model": MODEL, "prompt": "Hi", "max_tokens": 5000, "stream": True}
    url = "/openai/v1/completions"
    with traced.stack.client() as client, client.stream("POST", url, json=body, headers=headers) as response:
        next(response.iter_lines())
    spans = traced.spans(trace_id)
    server = server_of(spans)
    assert server.event_attributes["cancelled"] == {"completions.cancel_reason": "client_gone"}
    assert server.attributes["error.type"] == "client_closed_request"
    assert only(spans, "decode.request").attributes["completions.finish_reason"] == "cancelled"


def test_a_request_that_preprocess_refuses_ends_there(traced: TracedStack) -> None:
    trace_id, status = traced.post(prompt=[[1] * 10_000])
    assert status == 400
    spans = traced.spans(trace_id, choices=0)
    server = server_of(spans)
    assert server.attributes["error.type"] == "context_length_exceeded"
    assert server.status != ERROR_STATUS


def test_a_request_that_the_front_end_refuses_does_not_reach_triton(traced: TracedStack) -> None:
    trace_id, status = traced.post(max_tokens=0)
    assert status == 400
    (server,) = traced.spans(trace_id, of_triton=0, choices=0)
    assert server.attributes["error.type"] == "value_out_of_range"


def test_a_trace_that_the_client_does_not_record_has_no_spans(traced: TracedStack) -> None:
    unsampled, _ = traced.post(flags="00")
    later, _ = traced.post()
    traced.spans(later)
    assert traced.collector.of_trace(unsampled) == []
    (line,) = [line for line in traced.log if line.get("trace_id") == unsampled]
    assert line["event"] == "request"


def test_lines_of_the_log_have_the_ids_of_the_span(traced: TracedStack) -> None:
    trace_id, _ = traced.post()
    server = server_of(traced.spans(trace_id))
    (line,) = [line for line in traced.log if line.get("trace_id") == trace_id]
    assert line["span_id"] == server.span_id


def test_every_worker_exports_for_itself_and_histograms_lead_to_traces(traced: TracedStack) -> None:
    def instances() -> set[str]:
        return {
            span.resource["service.instance.id"]
            for span in traced.collector.spans
            if span.kind == SERVER_KIND and span.service != "triton"
        }

    wait_until(lambda: traced.post(max_tokens=1) and len(instances()) == 2, what="both workers have exported")
    with traced.stack.client() as client:
        text = client.get("/metrics", headers={"accept": "application/openmetrics-text"}).text
    buckets = [line for line in text.splitlines() if line.startswith("completions_request_duration_seconds_bucket")]
    assert [line for line in buckets if "# {" in line and 'trace_id="' in line]
    assert 'completions_trace_spans_total{outcome="not_delivered"} 0.0' in text
