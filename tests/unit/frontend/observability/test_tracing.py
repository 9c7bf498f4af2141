"""Traces beside the requests' own spans: decode's, exemplars, log lines, a collector that is down, and being off."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence

import pytest
import structlog
from opentelemetry.sdk.resources import SERVICE_NAME
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes
from opentelemetry.semconv.attributes import error_attributes, http_attributes, server_attributes, url_attributes
from opentelemetry.trace import StatusCode
from structlog.testing import capture_logs

from frontend.observability import otel, span_attributes
from frontend.observability.request_log import configure_logging
from frontend.observability.request_record import RequestRecord
from frontend.observability.tracing_factory import create_tracing
from llm_pipeline.protocol.engine_metrics import TracedRequest
from llm_pipeline.runtime.tracing_settings import TracingError, read_tracing_settings
from tests.support.app import KEY, MODEL, in_process, make_settings
from tests.support.tracing import PARENT_ID, TRACE_ID, TRACEPARENT, KeepingExporter, Traced
from tests.support.waiting import wait_until

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


def new_record(request_id: str = "id") -> RequestRecord:
    return RequestRecord(request_id, "POST", "/v1/completions", "http://localhost", False)


def request(traced: Traced) -> None:
    """One request without a parent."""
    record = new_record()
    traced.tracing.begin((), record).end(record)


# --- Decode ----------------------------------------------------------------------------------------------------------


def decode_spans(**times: object) -> list[ReadableSpan]:
    traced = Traced()
    whole = {"arrived_s": 100.0, "ended_s": 103.0, **times}
    sent = TracedRequest(TRACEPARENT, "vendor=1", 2, **whole)  # type: ignore[arg-type]
    traced.tracing.record_engine("triton:8001", [sent])
    return traced.spans()


def intervals(spans: list[ReadableSpan]) -> dict[str, tuple[float, float]]:
    return {span.name: ((span.start_time or 0) / 1e9, (span.end_time or 0) / 1e9) for span in spans}


def test_the_times_of_decode_are_spans_below_the_requests() -> None:
    spans = decode_spans(begun_s=100.5, first_token_s=101.25, finish_reason="stop")
    assert intervals(spans) == {
        "decode.request": (100, 103),
        "decode.queue": (100, 100.5),
        "decode.prefill": (100.5, 101.25),
        "decode.generation": (101.25, 103),
    }
    (whole,) = [span for span in spans if span.name == "decode.request"]
    assert whole.context is not None
    assert whole.parent is not None
    assert (f"{whole.context.trace_id:032x}", f"{whole.parent.span_id:016x}") == (TRACE_ID, PARENT_ID)
    assert dict(whole.attributes or {}) == {
        "completions.choice": 2,
        "server.address": "triton:8001",
        "completions.finish_reason": "stop",
    }
    inside = [span for span in spans if span is not whole]
    assert {span.parent.span_id for span in inside if span.parent} == {whole.context.span_id}
    assert {span.context.trace_state.to_header() for span in spans if span.context} == {"vendor=1"}


def test_a_request_that_ended_in_the_queue_was_only_there() -> None:
    assert intervals(decode_spans(finish_reason="cancelled")) == {
        "decode.request": (100, 103),
        "decode.queue": (100, 103),
    }


def test_a_request_that_ended_in_prefill_has_generated_nothing() -> None:
    found = intervals(decode_spans(begun_s=101.0, error="engine_unavailable"))
    assert found == {"decode.request": (100, 103), "decode.queue": (100, 101), "decode.prefill": (101, 103)}


def test_an_executor_without_a_queue_time_has_generation_alone() -> None:
    assert intervals(decode_spans(first_token_s=101.0)) == {
        "decode.request": (100, 103),
        "decode.generation": (101, 103),
    }


def test_an_error_of_decode_is_an_error_of_its_span() -> None:
    (whole,) = [span for span in decode_spans(error="engine_unavailable") if span.name == "decode.request"]
    assert whole.status.status_code is StatusCode.ERROR
    assert dict(whole.attributes or {})["error.type"] == "engine_unavailable"


# --- Metrics and logs ------------------------------------------------------------------------------------------------


async def test_histograms_lead_to_traces_in_openmetrics_alone() -> None:
    traced = Traced()
    async with in_process(tracing=traced.tracing) as app:
        body = {"model": MODEL, "prompt": "Hi", "stream": True}
        await app.client.post("/v1/completions", json=body, headers={"traceparent": TRACEPARENT})
        plain = (await app.client.get("/metrics")).text
        text = (await app.client.get("/metrics", headers={"accept": "application/openmetrics-text"})).text
    traced.tracing.close()
    assert TRACE_ID not in plain
    lines = [line for line in text.splitlines() if TRACE_ID in line]
    assert {line.split("_bucket")[0] for line in lines} == {
        "completions_request_duration_seconds",
        "completions_time_to_first_token_seconds",
    }


@pytest.fixture
def _logging_is_restored() -> Iterator[None]:
    root = logging.getLogger()
    before = root.handlers, root.level
    yield
    root.handlers, root.level = before
    structlog.reset_defaults()


@pytest.mark.usefixtures("_logging_is_restored")
def test_lines_of_a_request_have_the_ids_of_its_trace(capsys: pytest.CaptureFixture[str]) -> None:
    traced = Traced()
    configure_logging(make_settings(log_format="json"), add_trace_ids=traced.tracing.add_ids)
    record = new_record("mine")
    traced.tracing.begin([(b"traceparent", TRACEPARENT.encode())], record).end(record)
    log = structlog.get_logger("test")
    log.warning("after the end of the request", request_id="mine")
    log.warning("of another", request_id="other")
    log.warning("of none")
    context = traced.span().context
    assert context is not None
    span_id = f"{context.span_id:016x}"
    of_request, *others = capsys.readouterr().err.splitlines()
    assert f'"trace_id":"{TRACE_ID}"' in of_request.replace(" ", "")
    assert f'"span_id":"{span_id}"' in of_request.replace(" ", "")
    assert not [line for line in others if "trace_id" in line]


# --- A collector that is down ----------------------------------------------------------------------------------------


def test_spans_that_are_not_delivered_are_counted_and_logged_once() -> None:
    exporter = KeepingExporter(SpanExportResult.FAILURE)
    traced = Traced(exporter, max_queued=1)  # a batch is one span
    with capture_logs() as lines:
        for count in range(1, 6):
            request(traced)
            wait_until(lambda: traced.counts["not_delivered"] == count)  # noqa: B023
        exporter.result = SpanExportResult.SUCCESS
        request(traced)
        wait_until(lambda: traced.counts["exported"] == 1)
    traced.tracing.close()
    assert [line["event"] for line in lines] == ["traces_not_delivered", "traces_delivered_again"]


class BlockedExporter(KeepingExporter):
    """Waits in `export` until it is released."""

    def __init__(self) -> None:
        super().__init__()
        self.is_reached = threading.Event()
        self.is_released = threading.Event()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.is_reached.set()
        self.is_released.wait(20)
        return super().export(spans)


def test_a_full_queue_drops_and_counts() -> None:
    exporter = BlockedExporter()
    traced = Traced(exporter, max_queued=4)
    for _ in range(10):
        request(traced)
    assert exporter.is_reached.wait(20)
    assert traced.counts["queue_full"] == 6
    exporter.is_released.set()
    assert len(traced.spans()) == 4
    assert traced.counts["exported"] == 4


def test_the_end_does_not_wait_for_a_collector_that_hangs() -> None:
    exporter = BlockedExporter()
    traced = Traced(exporter)
    request(traced)
    started_s = time.monotonic()
    with capture_logs() as lines:
        traced.tracing.close()
    assert time.monotonic() - started_s < otel.FLUSH_S + 2
    assert [line["event"] for line in lines] == ["traces_not_flushed"]
    exporter.is_released.set()
    wait_until(lambda: not [thread for thread in threading.enumerate() if thread.name == "close-tracing"])


def test_what_is_left_is_sent_at_the_end() -> None:
    traced = Traced()
    for _ in range(1000):
        request(traced)
    assert len(traced.spans()) == 1000


# --- Settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {ENDPOINT: ""},
        {ENDPOINT: "http://localhost:1", "OTEL_SDK_DISABLED": "true"},
        {ENDPOINT: "http://localhost:1", "OTEL_TRACES_EXPORTER": "none"},
    ],
    ids=["unset", "empty", "disabled", "no exporter"],
)
def test_traces_are_off(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert create_tracing(lambda _outcome, _count: None) is None


def test_nothing_of_the_sdk_is_imported_when_traces_are_off() -> None:
    program = (
        "import sys, frontend.server as s; s.create_tracing(lambda outcome, count: None); "
        "sys.exit(any(name.startswith(('opentelemetry.sdk', 'opentelemetry.exporter')) for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=60, check=False).returncode == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (ENDPOINT, "collector:4318"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
        ("OTEL_TRACES_EXPORTER", "zipkin"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "0"),
    ],
)
def test_an_invalid_variable_is_named_and_its_value_is_not(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(TracingError, match=f"^{name}: "):
        create_tracing(lambda _outcome, _count: None)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENDPOINT, "http://localhost:4318")
    for name in [name for name in sys.modules if name.startswith("opentelemetry.exporter.otlp.proto.grpc")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto", None)
    with pytest.raises(TracingError, match=r"triton-completions\[tracing\]"):
        read_tracing_settings()


def test_the_environment_names_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test,service.version=9")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "mine")
    traced = Traced()
    request(traced)
    found = traced.span().resource.attributes
    assert (found[SERVICE_NAME], found["deployment.environment.name"], found["service.version"]) == (
        "mine",
        "test",
        "9",
    )
    assert found["service.instance.id"]


def test_names_of_attributes_are_those_of_the_conventions() -> None:
    ours = {value for name, value in vars(span_attributes).items() if name.isupper() and isinstance(value, str)}
    ours |= set(span_attributes.OF_PARAMETERS.values())
    known = {value for value in vars(gen_ai_attributes).values() if isinstance(value, str)}
    gen_ai = {name for name in ours if name.startswith("gen_ai.")}
    assert len(gen_ai) == 18
    assert gen_ai <= known
    assert span_attributes.ERROR_TYPE == error_attributes.ERROR_TYPE
    assert span_attributes.HTTP_METHOD == http_attributes.HTTP_REQUEST_METHOD
    assert span_attributes.HTTP_STATUS == http_attributes.HTTP_RESPONSE_STATUS_CODE
    assert span_attributes.URL_PATH == url_attributes.URL_PATH
    assert span_attributes.SERVER_ADDRESS == server_attributes.SERVER_ADDRESS
    assert KEY not in ours
