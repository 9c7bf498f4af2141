"""Arguments of tritonserver for traces: none unless OpenTelemetry's standard variables have an endpoint."""

from __future__ import annotations

from llm_pipeline.runtime.tracing_settings import TracingSettings

_NEVER = 2**31 - 1  # the largest rate that it takes
"""Triton records one request in this many by itself, and each one with a `traceparent` header: the front end sends
that for the requests that it records, so its sampler decides alone (tried with 2.51)."""


def trace_arguments(settings: TracingSettings) -> list[str]:
    """Returns the arguments with which Triton exports its spans of the requests that the front end records.

    Empty if traces are off, or are sent by gRPC: Triton's exporter speaks HTTP only. It reads headers and certificates
    from the standard variables itself.
    """
    url = settings.http_url
    if url is None:
        return []
    return [
        "--trace-config=mode=opentelemetry",
        f"--trace-config=opentelemetry,url={url}",
        f"--trace-config=opentelemetry,resource=service.name={_service(settings)}",
        f"--trace-config=rate={_NEVER}",
        "--trace-config=level=TIMESTAMPS",
    ]


def _service(settings: TracingSettings) -> str:
    """Another name than the front end's, which has the same variables."""
    return "triton" if settings.otel_service_name is None else f"{settings.otel_service_name}-triton"
