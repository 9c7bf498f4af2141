"""Turns every failure into the one error body of the contract, and its headers.

PipelineError                    from this package and from Triton; carries its code, and so its status
  RequestInvalidError            a body that breaks several rules at once: lists all of them
  MethodNotAllowedError          a known path with a method that it does not have
starlette HTTPException          404 and 405 of the router
anything else                    our own fault: logged, and shown as internal_error
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import orjson
import structlog
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from frontend.observability.request_record import RequestRecord, record_of
from frontend.request.errors import Detail, RequestInvalidError
from llm_pipeline.protocol.errors import ErrorCode, PipelineError, internal_error

log = structlog.get_logger(__name__)

MAX_RETRY_AFTER_S = 120  # the official client does not retry at all when asked to wait longer
_DEFAULT_RETRY_AFTER_S = 2.0
# Where the fault lies when it is in none of the body's fields.
_LOCATIONS = {
    ErrorCode.INVALID_API_KEY: "header.authorization",
    ErrorCode.UNSUPPORTED_MEDIA_TYPE: "header.content-type",
    ErrorCode.NOT_FOUND: "path",
    ErrorCode.METHOD_NOT_ALLOWED: "method",
    ErrorCode.INTERNAL_ERROR: "server",
    ErrorCode.SERVICE_UNAVAILABLE: "server",
    ErrorCode.ENGINE_UNAVAILABLE: "server",
    ErrorCode.DRAINING: "server",
    ErrorCode.DEADLINE_EXCEEDED: "server",
    ErrorCode.QUEUE_FULL: "server",
    ErrorCode.RATE_LIMIT_EXCEEDED: "server",
}


class MethodNotAllowedError(PipelineError):
    """A known path with a method that it does not have. `allow` lists those that it has."""

    def __init__(self, allow: str) -> None:
        super().__init__(ErrorCode.METHOD_NOT_ALLOWED, f"This path does not have that method. It has: {allow}.")
        self.allow = allow


def as_pipeline_error(error: Exception) -> PipelineError:
    """Any failure as a PipelineError. What is not one by itself is logged with its traceback."""
    if isinstance(error, PipelineError):
        return error
    if isinstance(error, HTTPException) and error.status_code == 404:
        return PipelineError(ErrorCode.NOT_FOUND, "There is nothing at this path. See /openai/openapi.json.")
    if isinstance(error, HTTPException) and error.status_code == 405:
        return MethodNotAllowedError((error.headers or {}).get("Allow", "none"))
    log.error("request_failed", exc_info=error)
    return internal_error()


def error_object(error: PipelineError) -> dict[str, Any]:
    """What the OpenAI clients read under the key `error`; all four keys are always there."""
    return {"message": error.message, "type": error.kind.type, "param": error.param, "code": error.code.value}


def error_body(error: PipelineError, schema_url: str) -> dict[str, Any]:
    """The body of every error answer."""
    return {
        "error": error_object(error),
        "title": error.kind.title,
        "status": error.kind.status,
        "detail": error.message,
        "errors": [{"message": detail.message, "location": detail.location} for detail in _details(error)],
        "$schema": schema_url,
    }


def _details(error: PipelineError) -> Sequence[Detail]:
    if isinstance(error, RequestInvalidError):
        return error.details
    location = f"body.{error.param}" if error.param else _LOCATIONS.get(error.code, "body")
    return [Detail(error.message, location)]


def error_response(error: PipelineError, record: RequestRecord) -> Response:
    """The answer to a request that failed before any of its answer was sent."""
    record.error_code = error.code
    schema_url = record.schema_url("Error")
    headers = {"Link": f'<{schema_url}>; rel="describedBy"', **_headers(error)}
    media_type = "application/problem+json" if record.wants_problem_json else "application/json"
    body = orjson.dumps(error_body(error, schema_url))
    return Response(body, error.kind.status, headers, media_type)


def _headers(error: PipelineError) -> dict[str, str]:
    status = error.kind.status
    if isinstance(error, MethodNotAllowedError):
        return {"Allow": error.allow}
    if status == 401:
        return {"WWW-Authenticate": "Bearer"}
    if status in (429, 503):
        wait_s = _DEFAULT_RETRY_AFTER_S if error.retry_after_s is None else error.retry_after_s
        wait_s = min(max(wait_s, 0.001), MAX_RETRY_AFTER_S)
        return {"Retry-After": str(math.ceil(wait_s)), "retry-after-ms": str(math.ceil(wait_s * 1000))}
    if status >= 500 and not error.kind.is_retryable:
        return {"x-should-retry": "false"}  # the official client retries every 5xx; this one would fail again
    return {}


async def handle_router_error(request: Request, error: Exception) -> Response:
    """Answers the router's own 404 and 405."""
    return error_response(as_pipeline_error(error), record_of(request.scope))
