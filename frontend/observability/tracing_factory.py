"""Creates the traces of a process if OpenTelemetry's variables ask for them, and imports OpenTelemetry only then."""

from __future__ import annotations

from frontend.observability.tracing import CountSpans, Tracing
from llm_pipeline.runtime.tracing_settings import read_tracing_settings


def create_tracing(count: CountSpans) -> Tracing | None:
    """Returns None if the environment has no endpoint for traces.

    Raises TracingError if its variables are invalid or OpenTelemetry is not installed.
    """
    settings = read_tracing_settings()
    if not settings.is_on:
        return None
    from frontend.observability.otel import OtelTracing, create_exporter  # takes 0.2 s

    return OtelTracing(create_exporter(settings.protocol), count, max_queued=settings.otel_bsp_max_queue_size)
