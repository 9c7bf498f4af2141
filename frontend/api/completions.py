"""POST /openai/v1/completions: from an HTTP request to the response that runs its completions."""

from __future__ import annotations

import asyncio
import math
import uuid
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from frontend.api import route_paths as paths
from frontend.api.openapi import LINK_HEADER, error_responses, schema_ref
from frontend.dependencies import Dependencies, get_dependencies
from frontend.generation.completion_run import Choice, CompletionRun
from frontend.models.registry import ServedModel
from frontend.models.run_metrics import RunMetrics
from frontend.observability.request_record import RequestRecord, record_of
from frontend.request.parsing import parse_object, read_body, validate
from frontend.request.schemas import CompletionRequest
from frontend.request.to_parameters import parameters_of
from frontend.response.answer import (
    CompletionResponse,
    JsonCompletionResponse,
    ResponseOptions,
    StreamingCompletionResponse,
)
from frontend.settings import FrontendSettings
from llm_pipeline.protocol.errors import ErrorCode, PipelineError

# A body of megabytes takes tens of milliseconds to validate: done off the event loop, which other streams need.
_LARGE_BODY_BYTES = 128 * 1024
_TIMEOUT_HEADER = "x-request-timeout-s"


router = APIRouter()


class CompletionRoute(APIRoute):
    """A route whose endpoint takes the plain request.

    It reads the body itself, as FastAPI would report errors in another form than the API's, and needs no dependencies
    resolved: FastAPI's handler would add to the CPU time of each request.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The endpoint itself instead of FastAPI's handler around it."""
        return self.endpoint


async def create_completion(request: Request) -> Response:
    """Completes one or more prompts: as one JSON object, or with `stream: true` as server-sent events."""
    return await _create(await get_dependencies(request), request)


async def _create(services: Dependencies, request: Request) -> Response:
    """Deterministic errors (4xx) are raised before load-dependent ones (503, 429)."""
    record = record_of(request.scope)
    timeout_s = _timeout_s(request, services.settings.request_timeout_s)
    services.rate_limits.count(record.key)
    completion = await _read(services, request, timeout_s)
    model = services.model_for(completion.model, record.key)
    record.model, record.served_model = completion.model, model.name
    record.is_stream = completion.stream
    model.check(completion)
    services.require_ready(model)
    await _check_best_of(model, completion)
    services.require_ready(model)  # again: the check may have waited for the engine
    return _answer(services, model, completion, record, min(timeout_s, model.timeout_s))


async def _check_best_of(model: ServedModel, completion: CompletionRequest) -> None:
    """best_of ranks by logprobs: the engine would reject a field that the client has not sent."""
    if completion.candidates == completion.n:
        return
    facts = await model.info_cache.read()
    if facts is not None and facts.capabilities.logprobs is None:
        raise PipelineError(
            ErrorCode.UNSUPPORTED_PARAMETER,
            f"best_of greater than n requires logprobs, which this server's engine ({facts.capabilities.executor}) "
            "does not support. Omit best_of.",
            param="best_of",
        )


def _timeout_s(request: Request, max_s: float) -> float:
    header = request.headers.get(_TIMEOUT_HEADER)
    if header is None:
        return max_s
    try:
        requested_s = float(header)
    except ValueError:
        requested_s = math.nan
    if not requested_s > 0:  # includes NaN
        raise PipelineError(
            ErrorCode.VALUE_OUT_OF_RANGE, f"The header {_TIMEOUT_HEADER} must be a number of seconds greater than 0."
        )
    return min(requested_s, max_s)


async def _read(services: Dependencies, request: Request, timeout_s: float) -> CompletionRequest:
    settings = services.settings
    try:
        body = await asyncio.wait_for(read_body(request, settings.max_body_bytes), timeout_s)
    except asyncio.TimeoutError:
        message = "The request exceeded its timeout before its body was complete."
        raise PipelineError(ErrorCode.DEADLINE_EXCEEDED, message) from None
    if len(body) > _LARGE_BODY_BYTES:
        completion, unknown = await asyncio.to_thread(_parse, settings, body)
    else:
        completion, unknown = _parse(settings, body)
    if unknown:
        services.metrics.unknown_fields.inc(unknown)
    return completion


def _parse(settings: FrontendSettings, body: bytes) -> tuple[CompletionRequest, int]:
    return validate(parse_object(body), max_choices=settings.most_choices, is_strict=settings.strict_fields)


def _answer(
    services: Dependencies, model: ServedModel, completion: CompletionRequest, record: RequestRecord, timeout_s: float
) -> CompletionResponse:
    parameters = [model.deployed.with_defaults(each) for each in parameters_of(completion, record.request_id)]
    choices = [Choice(index, index // completion.candidates, each) for index, each in enumerate(parameters)]
    _admit(services, model, len(choices))
    accounting = RunMetrics(record, model, services.admission)
    run = CompletionRun(choices, model.generator, accounting)
    services.admission.opened(run)
    settings = ResponseOptions(
        completion_id=f"cmpl-{uuid.uuid4().hex}",
        timeout_s=max(timeout_s - record.duration_s, 0.0),
        keepalive_s=services.settings.keepalive_s,
    )
    kind = StreamingCompletionResponse if completion.stream else JsonCompletionResponse
    return kind(run, completion, record, settings, on_close=partial(services.admission.closed, run))


def _admit(services: Dependencies, model: ServedModel, choices: int) -> None:
    """A place for each, the model's own and the server's, or none of them."""
    model.in_flight_limit.admit(choices)
    try:
        services.admission.admit(choices)
    except PipelineError:
        model.in_flight_limit.withdraw(choices)
        raise


_TIMEOUT_PARAMETER = {
    "name": _TIMEOUT_HEADER,
    "in": "header",
    "description": "Timeout of this request in seconds. Capped at the timeout of the server and of the model.",
    "schema": {"type": "number", "exclusiveMinimum": 0},
}
_REQUEST_BODY = {"required": True, "content": {"application/json": {"schema": schema_ref("CompletionRequest")}}}
_RESPONSE = {
    "headers": LINK_HEADER,
    "content": {
        "application/json": {"schema": schema_ref("Completion")},
        "text/event-stream": {"schema": {"type": "string"}},
    },
}

for _path in paths.COMPLETIONS:
    router.add_api_route(
        _path,
        create_completion,
        name="createCompletion",
        methods=["POST"],
        summary="Create completion",
        response_description="JSON if stream=false, server-sent events if stream=true",
        responses={200: _RESPONSE, **error_responses(400, 401, 403, 404, 405, 413, 415, 429, 500, 503, 504)},
        openapi_extra={"parameters": [_TIMEOUT_PARAMETER], "requestBody": _REQUEST_BODY},
        route_class_override=CompletionRoute,
    )
