"""Traces of a front end without a collector: an exporter that keeps the spans, and what was counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from frontend.observability.otel import OtelTracing

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT_ID = "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE_ID}-{PARENT_ID}-01"


@dataclass
class KeepingExporter(SpanExporter):
    """Keeps what it exports, or fails."""

    result: SpanExportResult = SpanExportResult.SUCCESS
    spans: list[ReadableSpan] = field(default_factory=list)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Keeps the spans."""
        self.spans.extend(spans)
        return self.result


class Traced:
    """A Tracing whose spans can be read once it is closed."""

    def __init__(self, exporter: KeepingExporter | None = None, *, max_queued: int = 2048) -> None:
        self.counts: Counter[str] = Counter()
        self._exporter = exporter or KeepingExporter()
        self.tracing = OtelTracing(self._exporter, self._count, max_queued=max_queued)

    def _count(self, outcome: str, count: int) -> None:
        self.counts[outcome] += count

    def spans(self) -> list[ReadableSpan]:
        """Closes the tracing, and returns all spans in order of their start."""
        self.tracing.close()
        return sorted(self._exporter.spans, key=lambda span: span.start_time or 0)

    def span(self) -> ReadableSpan:
        """Closes the tracing, and returns its only span."""
        (span,) = self.spans()
        return span
