"""POST on the paths of completions and chat: from an HTTP request to the response that runs its completions."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from frontend.api import route_paths as paths
from frontend.api.openapi import LINK_HEADER, error_responses, schema_ref
from frontend.dependencies import Dependencies
from frontend.generation.client_names import in_client_terms
from frontend.generation.completion_run import Choice, CompletionRun
from frontend.generation.token_budget import TokenContext
from frontend.loop_breaks import LoopBreaks
from frontend.models.registry import ServedModel
from frontend.models.run_metrics import RunMetrics
from frontend.observability.request_record import RequestRecord, record_of
from frontend.request.body_limits import BodyClock
from frontend.request.json_size import check_size
from frontend.request.key_rules import permitted_priority
from frontend.request.parsing import RequestForm, RequestT, parse_object, read_body, validate
from frontend.request.to_parameters import parameters_of
from frontend.response.answer import Answer
from frontend.response.completion import CompletionOperation
from frontend.response.json_response import JsonResponse
from frontend.response.lifetime import ResponseOptions
from frontend.response.operation import Operation
from frontend.response.stream import StreamingResponse
from frontend.settings import FrontendSettings
from llm_pipeline.protocol.errors import ErrorCode, PipelineError

# Takes about a millisecond to parse, whatever it contains. Larger ones take turns.
_LARGE_BODY_BYTES = 32 * 1024
_TIMEOUT_HEADER = "x-request-timeout-s"
_TIMEOUT_PARAMETER = {
    "name": _TIMEOUT_HEADER,
    "in": "header",
    "description": "Timeout of this request in seconds. Capped at the timeout of the server and of the model.",
    "schema": {"type": "number", "exclusiveMinimum": 0},
}
_STATUSES = (400, 401, 403, 404, 405, 408, 413, 415, 421, 429, 431, 500, 503, 504)


class OperationRoute(APIRoute):
    """A route that documents its endpoint. RequestContextMiddleware calls the endpoint's app without the router.

    FastAPI's own handler would parse the body, and report errors in another form than this API. It also costs 10 % of
    the CPU time of a short request.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **documentation: Any) -> None:
        super().__init__(path, endpoint, **documentation)
        self.app = SERVED[paths.operation_of(path) or ""]


def add_routes(app: FastAPI) -> None:
    """Adds each path and its alias to the app itself: it matches the routes of included routers twice."""
    for path in paths.COMPLETIONS:
        _add_route(app, path, create_completion, "createCompletion", "Create completion", "Completion")
    for path in paths.CHAT:
        _add_route(
            app, path, create_chat_completion, "createChatCompletion", "Create chat completion", "ChatCompletion"
        )


def _add_route(app: FastAPI, path: str, endpoint: Callable[..., Any], name: str, summary: str, schema: str) -> None:
    """Documents a path. `schema` is the name of the answer's schema, and with Request behind it the body's."""
    response = {
        "headers": LINK_HEADER,
        "content": {
            "application/json": {"schema": schema_ref(schema)},
            "text/event-stream": {"schema": {"type": "string"}},
        },
    }
    body = {"required": True, "content": {"application/json": {"schema": schema_ref(f"{schema}Request")}}}
    app.router.add_api_route(
        path,
        endpoint,
        name=name,
        methods=["POST"],
        response_model=None,
        summary=summary,
        response_description="JSON if stream=false, server-sent events if stream=true",
        responses={200: response, **error_responses(*(status for status in _STATUSES if status != 421))},
        openapi_extra={"parameters": [_TIMEOUT_PARAMETER], "requestBody": body},
        route_class_override=OperationRoute,
    )


async def serve_completion(scope: Scope, receive: Receive, send: Send) -> None:
    """ASGI app for POST on the paths of completions. Raises PipelineError before the response has started."""
    response = await create_completion(Request(scope, receive, send))
    await response(scope, receive, send)


async def serve_chat(scope: Scope, receive: Receive, send: Send) -> None:
    """ASGI app for POST on the paths of chat. Raises PipelineError before the response has started."""
    response = await create_chat_completion(Request(scope, receive, send))
    await response(scope, receive, send)


SERVED: Mapping[str, ASGIApp] = {"completions": serve_completion, "chat": serve_chat}
"""The apps by the name of their operation."""

_COMPLETIONS = CompletionOperation()


async def create_completion(request: Request) -> ASGIApp:
    """Completes one or more prompts: as one JSON object, or with `stream: true` as server-sent events."""
    return await _create(request.app.state.dependencies, _COMPLETIONS, request)


async def create_chat_completion(request: Request) -> ASGIApp:
    """Answers a conversation: as one JSON object, or with `stream: true` as server-sent events."""
    dependencies = request.app.state.dependencies
    return await _create(dependencies, dependencies.chat, request)


async def _create(dependencies: Dependencies, operation: Operation[RequestT], request: Request) -> ASGIApp:
    """Deterministic errors (4xx) are raised before load-dependent ones (503, 429)."""
    record = record_of(request.scope)
    timeout_s = _timeout_s(request, dependencies.settings.request_timeout_s)
    if record.key is None:
        _require_content_type(request)
    dependencies.rate_limits.count(record.key)
    body = await _read(dependencies, operation, request, timeout_s)
    model = dependencies.model_for(body.model, record.key)
    record.model, record.served_model = body.model, model.name
    record.is_stream = body.stream
    model.check(body)
    permitted_priority(body.priority, record.key)
    dependencies.key_limits.check(record.key, model.in_flight_limit, body.choice_count)
    dependencies.require_ready(model)
    own, answer = await operation.prepare(model, body, None if record.key is None else record.key.name)
    has_token_limit = record.key is not None and record.key.max_tokens_in_flight is not None
    context = await _token_context(model) if has_token_limit else None
    dependencies.require_ready(model)  # again: the checks may have waited for the engine
    dependencies.keys.require_valid(record.key)  # again: the body may have taken long
    parameters = parameters_of(body, own, record.request_id, key=record.key, tenant=dependencies.tenants.of(record.key))
    choices = [
        Choice(index, index // own.candidates, model.deployed.with_defaults(one))
        for index, one in enumerate(parameters)
    ]
    return _start(dependencies, model, choices, answer, record, min(timeout_s, model.timeout_s), context)


async def _token_context(model: ServedModel) -> TokenContext:
    """What the tokens of a request depend on besides the request."""
    info = await model.info_cache.read()
    if info is None:  # the model's server is of another kind: only the request's own max_tokens is known
        return TokenContext(model.max_model_len, 0)
    return TokenContext(model.max_model_len or info.context_length, info.default_max_tokens)


def _require_content_type(request: Request) -> None:
    """Without keys, a web page of any site could send requests: browsers allow it for bodies of no type (Blob)."""
    if "content-type" not in request.headers:
        raise PipelineError(ErrorCode.UNSUPPORTED_MEDIA_TYPE, "Send the body with `Content-Type: application/json`.")


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


async def _read(
    dependencies: Dependencies, operation: Operation[RequestT], request: Request, timeout_s: float
) -> RequestT:
    settings = dependencies.settings
    key = record_of(request.scope).key
    holder = None if key is None else key.name
    with dependencies.body_budget.share(holder) as share:
        body = await read_body(request, settings.max_body_bytes, BodyClock(timeout_s, settings.body_timeout_s), share)
        if len(body) > _LARGE_BODY_BYTES:
            async with dependencies.parsing_turns.turn(holder):
                valid, unknown = await _parse_large(settings, operation.form, body)
        else:
            valid, unknown = _validate(settings, operation.form, parse_object(body))
    if unknown:
        dependencies.metrics.unknown_fields.inc(unknown)
    return valid


async def _parse_large(settings: FrontendSettings, form: RequestForm[RequestT], body: bytes) -> tuple[RequestT, int]:
    breaks = LoopBreaks()
    check_size(body)
    await breaks.pause()
    document = parse_object(body)
    await breaks.pause()
    result = _validate(settings, form, document)
    await breaks.pause()
    return result


def _validate(
    settings: FrontendSettings, form: RequestForm[RequestT], document: dict[str, Any]
) -> tuple[RequestT, int]:
    return validate(form, document, max_choices=settings.max_choices_per_request, is_strict=settings.strict_fields)


def _start(
    dependencies: Dependencies,
    model: ServedModel,
    choices: list[Choice],
    answer: Answer,
    record: RequestRecord,
    timeout_s: float,
    context: TokenContext | None,
) -> ASGIApp:
    key, limits = record.key, dependencies.key_limits
    tokens = None
    if key is not None and context is not None:
        try:
            tokens = limits.reserve_tokens(key, [context.most_tokens(choice.parameters) for choice in choices])
        except PipelineError as error:
            raise in_client_terms(error, choices[0].parameters) from error
    model_limit = model.in_flight_limit
    slots = dependencies.admission.acquire(len(choices), model_limit, limits.of(key, model_limit), tokens)
    observer = RunMetrics(record, model, slots)
    run = CompletionRun(choices, model.generator, observer, dependencies.run_limits)
    dependencies.admission.add(run, key)
    options = ResponseOptions(
        response_id=answer.id_prefix + os.urandom(16).hex(),
        created=record.created,
        timeout_s=max(timeout_s - record.duration_s, 0.0),
        keepalive_s=dependencies.settings.keepalive_s,
    )
    response_class = StreamingResponse if record.is_stream else JsonResponse
    return response_class(run, answer, record, options, on_close=partial(dependencies.admission.remove, run))
