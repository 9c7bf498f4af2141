"""A collector for tests: a real OTLP receiver (rotel) in front of a list of spans.

rotel takes spans by gRPC and by HTTP, the latter also as JSON, which is what Triton sends. It passes them on by HTTP.
"""

from __future__ import annotations

import gzip
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue

from launcher.ports import free_ports
from tests.support.http_server import LOOPBACK, QuietLog, serving
from tests.support.waiting import wait_until

SERVER_KIND = 2  # of a span, in OTLP
ERROR_STATUS = 2


@dataclass(frozen=True)
class ReceivedSpan:
    """A span as it arrived. Times are Unix time in nanoseconds; ids are hexadecimal."""

    resource: dict[str, Any]
    trace_id: str
    span_id: str
    parent_id: str
    trace_state: str
    name: str
    kind: int
    status: int
    start_ns: int
    end_ns: int
    attributes: dict[str, Any]
    events: dict[str, int]  # time by name
    event_attributes: dict[str, dict[str, Any]]

    @property
    def service(self) -> str:
        return str(self.resource["service.name"])


@dataclass
class Collector:
    """The spans that have arrived, and where to send them."""

    http_url: str
    grpc_url: str
    spans: list[ReceivedSpan] = field(default_factory=list)

    def of_trace(self, trace_id: str) -> list[ReceivedSpan]:
        return [span for span in list(self.spans) if span.trace_id == trace_id]

    def wait_for_trace(
        self, trace_id: str, is_complete: Callable[[list[ReceivedSpan]], object], limit_s: float = 20
    ) -> list[ReceivedSpan]:
        """The spans of a trace when they are complete."""
        wait_until(
            lambda: is_complete(self.of_trace(trace_id)),
            limit_s=limit_s,
            what=f"a complete trace, of {[span.name for span in self.of_trace(trace_id)]},",
        )
        return self.of_trace(trace_id)


def children(spans: list[ReceivedSpan], parent: ReceivedSpan) -> list[str]:
    """Names of the spans directly below one, in order of their start."""
    below = [span for span in spans if span.parent_id == parent.span_id]
    return [span.name for span in sorted(below, key=lambda span: span.start_ns)]


@contextmanager
def running_collector(folder: Path) -> Iterator[Collector]:
    """Runs a collector on free ports."""
    http_port, grpc_port = free_ports(2)
    collector = Collector(f"http://127.0.0.1:{http_port}", f"http://127.0.0.1:{grpc_port}")
    program = Path(str(distribution("rotel").locate_file("rotel/rotel-agent")))
    program.chmod(0o755)  # the wheel's own launcher does the same
    with serving(ThreadingHTTPServer(LOOPBACK, partial(_Sink, collector))) as sink_url:
        arguments = {
            "otlp-http-endpoint": f"127.0.0.1:{http_port}",
            "otlp-grpc-endpoint": f"127.0.0.1:{grpc_port}",
            "exporter": "otlp",
            "otlp-exporter-endpoint": sink_url,
            "otlp-exporter-protocol": "http",
            "batch-timeout": "20ms",
            "pid-file": str(folder / "rotel.pid"),
            "log-file": str(folder / "rotel.log"),
        }
        with open(folder / "rotel.out", "wb") as output:
            line = [str(program), "start", *(f"--{name}={value}" for name, value in arguments.items())]
            process = subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        try:
            yield collector
        finally:
            process.terminate()
            process.wait(10)


class _Sink(QuietLog, BaseHTTPRequestHandler):
    """Receives what rotel passes on."""

    protocol_version = "HTTP/1.1"

    def __init__(self, collector: Collector, *connection: Any) -> None:
        self._collector = collector
        super().__init__(*connection)

    def do_POST(self) -> None:
        # rotel compresses whatever its arguments say.
        body = gzip.decompress(self.rfile.read(int(self.headers["content-length"])))
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            described = _attributes(resource.resource.attributes)
            for scope in resource.scope_spans:
                self._collector.spans.extend(_received(described, span) for span in scope.spans)
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()


def _received(resource: dict[str, Any], span: Any) -> ReceivedSpan:
    return ReceivedSpan(
        resource=resource,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        trace_state=span.trace_state,
        name=span.name,
        kind=span.kind,
        status=span.status.code,
        start_ns=span.start_time_unix_nano,
        end_ns=span.end_time_unix_nano,
        attributes=_attributes(span.attributes),
        events={event.name: event.time_unix_nano for event in span.events},
        event_attributes={event.name: _attributes(event.attributes) for event in span.events},
    )


def _attributes(sent: Any) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in sent}


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(item) for item in value.array_value.values]
    return None if kind is None else getattr(value, kind)
