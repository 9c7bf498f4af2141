"""Converts every failure to an error response: the error body of the API, and its headers.

PipelineError                    from the front end and from Triton; its code determines the HTTP status
  RequestInvalidError            a body that violates several rules at once; lists all of them
  MethodNotAllowedError          a known path with an unsupported method
starlette HTTPException          405 of the router; its 404 comes as PipelineError (api/near_paths.py)
any other exception              a bug: logged, and returned as internal_error
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import orjson
import structlog
from starlette.exceptions import HTTPException
from starlette.responses import Response

from frontend.observability.request_record import RequestRecord
from frontend.request.errors import Detail, RequestInvalidError
from llm_pipeline.protocol.errors import ErrorCode, PipelineError, internal_error

log = structlog.get_logger(__name__)

MAX_RETRY_AFTER_S = 120  # OpenAI's client does not retry at all after a longer delay
# Of a 503: two retries, as OpenAI's client makes them, outlast the 4 s in which the chart's readiness probe finds out.
# Until then a proxy may send them here again, the more so as a server that refuses has the fewest connections.
DEFAULT_RETRY_AFTER_S = 3.0
# The `location` of errors that are not about a field of the body.
_LOCATIONS = {
    ErrorCode.INVALID_API_KEY: "header.authorization",
    ErrorCode.UNSUPPORTED_MEDIA_TYPE: "header.content-type",
    ErrorCode.HOST_NOT_ALLOWED: "header.host",
    ErrorCode.ORIGIN_NOT_ALLOWED: "header.origin",
    ErrorCode.HEADERS_TOO_LARGE: "header",
    ErrorCode.INVALID_HTTP: "request",
    ErrorCode.REQUEST_TIMEOUT: "request",
    ErrorCode.NOT_FOUND: "path",
    ErrorCode.METHOD_NOT_ALLOWED: "method",
    ErrorCode.INTERNAL_ERROR: "server",
    ErrorCode.SERVICE_UNAVAILABLE: "server",
    ErrorCode.ENGINE_UNAVAILABLE: "server",
    ErrorCode.DRAINING: "server",
    ErrorCode.DEADLINE_EXCEEDED: "server",
    ErrorCode.QUEUE_FULL: "server",
    ErrorCode.RATE_LIMIT_EXCEEDED: "server",
    ErrorCode.REQUEST_RATE_EXCEEDED: "server",
    ErrorCode.TOKEN_RATE_EXCEEDED: "server",
    ErrorCode.INSUFFICIENT_QUOTA: "server",
}


class MethodNotAllowedError(PipelineError):
    """A known path with an unsupported method. `allow` lists the supported ones."""

    def __init__(self, allow: str) -> None:
        super().__init__(ErrorCode.METHOD_NOT_ALLOWED, f"This method is not supported by this path. Use {allow}.")
        self.allow = allow


def as_pipeline_error(error: Exception) -> PipelineError:
    """Converts any exception. Unexpected ones are logged with their traceback."""
    if isinstance(error, PipelineError):
        return error
    if isinstance(error, HTTPException) and error.status_code == 405:
        return MethodNotAllowedError((error.headers or {}).get("Allow", "none"))
    log.error("request_failed", exc_info=error)
    return internal_error()


def error_object(error: PipelineError) -> dict[str, Any]:
    """The object under the key `error`, which OpenAI's clients read. All four keys are always present."""
    return {"message": error.message, "type": error.kind.type, "param": error.param, "code": error.client_code}


def error_body(error: PipelineError, schema_url: str) -> dict[str, Any]:
    """The body of an error response."""
    return {
        "error": error_object(error),
        "title": error.kind.title,
        "status": error.kind.status,
        "detail": error.message,
        "errors": [{"message": detail.message, "location": detail.location} for detail in _details(error)],
        "$schema": schema_url,
    }


def error_bytes(error: PipelineError, schema_url: str) -> bytes:
    """The body of an error response as JSON."""
    return orjson.dumps(error_body(error, schema_url))


def _details(error: PipelineError) -> Sequence[Detail]:
    if isinstance(error, RequestInvalidError):
        return error.details
    location = f"body.{error.param}" if error.param else _LOCATIONS.get(error.code, "body")
    return [Detail(error.message, location)]


def error_response(error: PipelineError, record: RequestRecord) -> Response:
    """The response to a request that failed before any part of its response was sent."""
    record.error_code = error.code
    schema_url = record.schema_url("Error")
    headers = {"Link": f'<{schema_url}>; rel="describedBy"', **error_headers(error)}
    media_type = "application/problem+json" if record.wants_problem_json else "application/json"
    return Response(error_bytes(error, schema_url), error.kind.status, headers, media_type)


def error_headers(error: PipelineError) -> dict[str, str]:
    """The headers of an error response that depend on the error."""
    status = error.kind.status
    if isinstance(error, MethodNotAllowedError):
        return {"Allow": error.allow}
    if status == 401:
        return {"WWW-Authenticate": "Bearer"}
    if error.code is ErrorCode.INSUFFICIENT_QUOTA and error.retry_after_s is not None:
        # OpenAI's client retries every 429; hours are too long to wait, and this one passes only then.
        return {**_delay_headers(error.retry_after_s), "x-should-retry": "false"}
    if status in (429, 503):
        delay_s = DEFAULT_RETRY_AFTER_S if error.retry_after_s is None else error.retry_after_s
        delay_s = min(max(delay_s, 0.001), MAX_RETRY_AFTER_S)
        return _delay_headers(delay_s)
    if status >= 500 and not error.kind.is_retryable:
        return {"x-should-retry": "false"}  # OpenAI's client retries every 5xx; this request would fail again
    return {}


def _delay_headers(delay_s: float) -> dict[str, str]:
    return {"Retry-After": str(math.ceil(delay_s)), "retry-after-ms": str(math.ceil(delay_s * 1000))}
