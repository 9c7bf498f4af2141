"""Spans of requests with OpenTelemetry's SDK: the only module that imports it, and only if traces are on.

A request has one SERVER span, and below it, for each choice, the spans of its time in decode, which decode reports when
the choice has ended (docs/decisions/0021). Triton exports its own spans.

A collector that is down must cost nothing: the queue is bounded, what does not fit or cannot be delivered is dropped
and counted, and the log has one line when delivery begins to fail and one when it works again.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from typing import Any

import structlog
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from frontend.observability import span_attributes as names
from frontend.observability.tracing import EXPORTED, NOT_DELIVERED, QUEUE_FULL, CountSpans, FinishedRequest
from llm_pipeline.protocol.engine_metrics import TracedRequest
from llm_pipeline.protocol.messages import TraceContext
from llm_pipeline.runtime.tracing_settings import Protocol

log = structlog.get_logger(__name__)

FLUSH_S = 2.0
"""Longest time that `close` takes: a part of the front end's last seconds before it is killed."""

_REMEMBERED_REQUESTS = 8192  # whose log lines get trace ids: a line may follow the end of the request
_DEFAULT_BATCH = 512  # spans, of the specification; a batch may not exceed the queue
_NS = 1_000_000_000
_CONTEXT_HEADERS = (b"traceparent", b"tracestate")


def create_exporter(protocol: Protocol) -> SpanExporter:
    """Returns an exporter that reads endpoint, headers, certificates and timeout from the standard variables."""
    return GrpcExporter() if protocol == "grpc" else HttpExporter()


class OtelTracing:
    """The spans of one process. `begin` and `record_engine` belong to the event loop's thread."""

    def __init__(self, exporter: SpanExporter, count: CountSpans, *, max_queued: int) -> None:
        """Sampler, resource and the batches' sizes are read from the standard variables."""
        for library in ("opentelemetry.exporter", "opentelemetry.sdk"):
            logging.getLogger(library).setLevel(logging.CRITICAL)  # they log each failed batch
        self._provider = TracerProvider(resource=_resource(), shutdown_on_exit=False)
        self._provider.add_span_processor(_BoundedProcessor(exporter, count, max_queued))
        self._tracer = self._provider.get_tracer("triton_completions", version("triton-completions"))
        self._propagator = TraceContextTextMapPropagator()
        self._ids: OrderedDict[str, tuple[str, str]] = OrderedDict()

    def begin(self, headers: Iterable[tuple[bytes, bytes]], record: FinishedRequest) -> OtelRequestTrace:
        """Begins the span of a request, in the trace of its `traceparent` header if that is valid."""
        started_ns = time.time_ns()
        attributes = {
            names.OPERATION_NAME: _operation(record),
            names.PROVIDER_NAME: names.PROVIDER,
            names.HTTP_METHOD: record.method,
            names.URL_PATH: record.path,
            names.REQUEST_ID: record.request_id,
        }
        span = self._tracer.start_span(
            _operation(record),
            context=self._parent(headers),
            kind=SpanKind.SERVER,
            attributes=attributes,
            start_time=started_ns,
        )
        trace = OtelRequestTrace(span, started_ns - round(record.started_s * _NS))
        self._ids[record.request_id] = trace.ids
        if len(self._ids) > _REMEMBERED_REQUESTS:
            self._ids.popitem(last=False)
        return trace

    def record_engine(self, endpoint: str, requests: Sequence[TracedRequest]) -> None:
        """Records the spans of requests that have ended in the decode model of an endpoint."""
        for request in requests:
            self._record_decode(endpoint, request)

    def add_ids(self, _logger: Any, _method: str, fields: Any) -> Any:
        """Adds the ids of the trace to a log line with a request id. A processor of structlog."""
        request_id = fields.get("request_id")
        if request_id is not None and (ids := self._ids.get(request_id)) is not None:
            fields["trace_id"], fields["span_id"] = ids
        return fields

    def close(self) -> None:
        """Sends what is left, within FLUSH_S. Spans that end later are dropped."""
        # The SDK's own limits are those of the exporter, which retries for 10 s.
        closing = threading.Thread(target=self._provider.shutdown, name="close-tracing", daemon=True)
        closing.start()
        closing.join(FLUSH_S)
        if closing.is_alive():
            log.warning("traces_not_flushed", limit_s=FLUSH_S)

    def _parent(self, headers: Iterable[tuple[bytes, bytes]]) -> Context:
        sent: dict[str, list[str]] = {}
        for name, value in headers:
            if name in _CONTEXT_HEADERS:
                sent.setdefault(name.decode(), []).append(value.decode("latin-1"))
        if len(sent.get("traceparent", ())) != 1:  # several: W3C requires a new trace
            return Context()
        return self._propagator.extract(sent, context=Context())

    def _record_decode(self, endpoint: str, request: TracedRequest) -> None:
        carrier = {"traceparent": request.traceparent, "tracestate": request.tracestate}
        parent = self._propagator.extract(carrier, context=Context())
        whole = self._interval(names.SPAN_DECODE, parent, request.arrived_s)
        whole.set_attributes({names.CHOICE: request.choice, names.SERVER_ADDRESS: endpoint})
        if request.finish_reason is not None:
            whole.set_attribute(names.FINISH_REASON, request.finish_reason)
        if request.error is not None:
            whole.set_attribute(names.ERROR_TYPE, request.error)
            whole.set_status(Status(StatusCode.ERROR))
        inside = set_span_in_context(whole, Context())
        begun_s, first_s, ended_s = request.begun_s, request.first_token_s, request.ended_s
        if begun_s is not None:
            self._interval(names.SPAN_QUEUE, inside, request.arrived_s).end(_ns(begun_s))
            self._interval(names.SPAN_PREFILL, inside, begun_s).end(_ns(ended_s if first_s is None else first_s))
        elif first_s is None:  # it never left the queue, as far as the executor reports that
            self._interval(names.SPAN_QUEUE, inside, request.arrived_s).end(_ns(ended_s))
        if first_s is not None:
            self._interval(names.SPAN_GENERATION, inside, first_s).end(_ns(ended_s))
        whole.end(_ns(ended_s))

    def _interval(self, name: str, parent: Context, start_s: float) -> Span:
        return self._tracer.start_span(name, context=parent, start_time=_ns(start_s))


class OtelRequestTrace:
    """The span of one HTTP request. `clock_ns` is Unix time minus the monotonic clock."""

    def __init__(self, span: Span, clock_ns: int) -> None:
        self._span = span
        self._clock_ns = clock_ns
        context = span.get_span_context()
        self.ids = f"{context.trace_id:032x}", f"{context.span_id:016x}"
        self.context: TraceContext | None = None
        self.exemplar: dict[str, str] | None = None
        if span.is_recording():
            trace_id, span_id = self.ids
            self.context = TraceContext(f"00-{trace_id}-{span_id}-01", context.trace_state.to_header())
            self.exemplar = {"trace_id": trace_id, "span_id": span_id}

    def on_queued(self, parameters: object, response_id: str) -> None:
        """The request is valid and is sent to the engine. `parameters` has the fields of GenerationFields."""
        span = self._span
        if not span.is_recording():
            return
        for field, name in names.OF_PARAMETERS.items():
            value = getattr(parameters, field, None)
            if value is not None:
                span.set_attribute(name, value)
        span.set_attribute(names.REQUEST_STREAM, bool(getattr(parameters, "stream", False)))
        span.set_attribute(names.CHOICE_COUNT, getattr(parameters, "n", 1))
        span.set_attribute(names.RESPONSE_ID, response_id)
        span.add_event(names.EVENT_QUEUED)

    def on_cancel(self, reason: str) -> None:
        """The rest of the request is cancelled."""
        self._span.add_event(names.EVENT_CANCELLED, {names.CANCEL_REASON: reason})

    def end(self, record: FinishedRequest) -> None:
        """Ends the span."""
        span, status = self._span, record.final_status
        if not span.is_recording():
            return
        if record.model is not None:  # else a client could make any name of a span
            span.update_name(f"{_operation(record)} {record.model}")
            span.set_attribute(names.REQUEST_MODEL, record.model)
            span.set_attribute(names.RESPONSE_MODEL, record.served_model or record.model)
        if record.first_token_s is not None:
            span.set_attribute(names.TIME_TO_FIRST_CHUNK, record.first_token_s - record.started_s)
            span.add_event(names.EVENT_FIRST_TOKEN, timestamp=self._clock_ns + round(record.first_token_s * _NS))
        if record.finish_reasons:
            span.set_attribute(names.FINISH_REASONS, record.finish_reasons)
        if record.prompt_tokens:
            span.set_attribute(names.INPUT_TOKENS, record.prompt_tokens)
            span.set_attribute(names.OUTPUT_TOKENS, record.completion_tokens)
        span.set_attribute(names.HTTP_STATUS, status)
        if status >= 400:
            span.set_attribute(names.ERROR_TYPE, record.error_name or str(status))
        if status >= 500:
            span.set_status(Status(StatusCode.ERROR))
        span.end()


class _BoundedProcessor(SpanProcessor):
    """Hands ended spans to a thread that exports them in batches.

    The SDK's queue drops its oldest span and logs that for each; this one refuses the newest, and counts.
    """

    def __init__(self, exporter: SpanExporter, count: CountSpans, max_queued: int) -> None:
        self._count = count
        self._max_queued = max_queued
        self._accepted = 0
        self._exporter = _CountingExporter(exporter, count)
        batch = max_queued if max_queued < _DEFAULT_BATCH else None  # None: OTEL_BSP_MAX_EXPORT_BATCH_SIZE
        self._batches = BatchSpanProcessor(self._exporter, max_queue_size=max_queued, max_export_batch_size=batch)

    def on_end(self, span: ReadableSpan) -> None:
        if self._accepted - self._exporter.taken >= self._max_queued:
            self._count(QUEUE_FULL, 1)
            return
        self._accepted += 1
        self._batches.on_end(span)

    def shutdown(self) -> None:
        self._batches.shutdown()  # type: ignore[no-untyped-call]

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        return self._batches.force_flush(timeout_millis)


class _CountingExporter(SpanExporter):
    """Counts what an exporter delivers and what it does not, and logs the change from one to the other."""

    def __init__(self, exporter: SpanExporter, count: CountSpans) -> None:
        self._exporter = exporter
        self._count = count
        self._is_failing = False
        self.taken = 0  # spans that were taken out of the queue

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        try:
            result = self._exporter.export(spans)
        finally:
            self.taken += len(spans)
        is_failing = result is not SpanExportResult.SUCCESS
        self._count(NOT_DELIVERED if is_failing else EXPORTED, len(spans))
        if is_failing and not self._is_failing:
            log.warning("traces_not_delivered", advice="check the endpoint; dropped spans are counted until it works")
        elif self._is_failing and not is_failing:
            log.info("traces_delivered_again")
        self._is_failing = is_failing
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        return self._exporter.force_flush(timeout_millis)


def _resource() -> Resource:
    """Our defaults below the attributes of OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME."""
    defaults = {
        names.SERVICE_NAME: "triton-completions",
        names.SERVICE_VERSION: version("triton-completions"),
        names.SERVICE_INSTANCE_ID: str(uuid.uuid4()),  # one for each worker
    }
    return Resource.create({**defaults, **OTELResourceDetector().detect().attributes})


def _ns(unix_s: float) -> int:
    return round(unix_s * _NS)


def _operation(record: FinishedRequest) -> str:
    return names.OPERATIONS[record.operation or "completions"]
