"""Traces of requests, as the rest of the front end sees them. OpenTelemetry itself is imported by otel.py alone.

Off by default: then there is no `Tracing`, records have no `trace`, and nothing of OpenTelemetry is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, TypeAlias

from llm_pipeline.protocol.engine_metrics import TracedRequest
from llm_pipeline.protocol.messages import TraceContext

CountSpans: TypeAlias = Callable[[str, int], None]
"""Counts spans by what became of them: EXPORTED or one of DROPPED. Called from several threads."""

EXPORTED = "exported"
QUEUE_FULL = "queue_full"
NOT_DELIVERED = "not_delivered"
OUTCOMES = (EXPORTED, QUEUE_FULL, NOT_DELIVERED)


class FinishedRequest(Protocol):
    """What a span needs of the record of a request that has ended. Times (`_s`) are of the monotonic clock."""

    @property
    def final_status(self) -> int: ...

    @property
    def error_name(self) -> str | None: ...

    method: str
    path: str
    operation: str | None  # completions or chat
    request_id: str
    model: str | None
    served_model: str | None
    started_s: float
    first_token_s: float | None
    prompt_tokens: int
    completion_tokens: int
    finish_reasons: tuple[str, ...]


class RequestTrace(Protocol):
    """The span of one HTTP request, until `end`."""

    context: TraceContext | None
    """For the request's spans in Triton; None if the trace is not recorded."""

    exemplar: dict[str, str] | None
    """Labels that lead from a histogram to the trace; None if the trace is not recorded."""

    def on_queued(self, parameters: object, response_id: str) -> None:
        """The request is valid and is sent to the engine. `parameters` has the fields of GenerationFields."""

    def on_cancel(self, reason: str) -> None:
        """The rest of the request is cancelled."""

    def end(self, record: FinishedRequest) -> None:
        """Ends the span."""


class Tracing(Protocol):
    """Makes the spans of one process."""

    def begin(self, headers: Iterable[tuple[bytes, bytes]], record: FinishedRequest) -> RequestTrace:
        """Begins the span of a request, in the trace of its `traceparent` header if that is valid."""

    def record_engine(self, endpoint: str, requests: Sequence[TracedRequest]) -> None:
        """Records the spans of requests that have ended in the decode model of an endpoint."""

    def add_ids(self, _logger: Any, _method: str, fields: Any) -> Any:
        """Adds the ids of the trace to a log line with a request id. A processor of structlog."""

    def close(self) -> None:
        """Sends what is left, within a few seconds. Spans that end later are dropped."""
