"""POST /openai/v1/completions: from a request to the answer that runs it."""

from __future__ import annotations

import asyncio
import math
import uuid
from functools import partial

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from frontend.api import route_paths as paths
from frontend.dependencies import Dependencies
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

# A body of megabytes takes tens of milliseconds to check: not on the event loop, where streams wait.
_LARGE_BODY_BYTES = 128 * 1024
_TIMEOUT_HEADER = "x-request-timeout-s"


def routes(services: Dependencies) -> list[Route]:
    """The path and its alias."""
    create = partial(_create, services)
    return [Route(path, create, methods=["POST"]) for path in paths.COMPLETIONS]


async def _create(services: Dependencies, request: Request) -> Response:
    """Refusals come in an order that makes them certain before they may be a matter of luck (503, 429)."""
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
    """The engine would refuse log probs, which its client has not asked for."""
    if completion.candidates == completion.n:
        return
    facts = await model.info_cache.read()
    if facts is not None and facts.capabilities.logprobs is None:
        raise PipelineError(
            ErrorCode.UNSUPPORTED_PARAMETER,
            f"best_of above n needs log probs, which this server's engine ({facts.capabilities.executor}) does not "
            "give. Leave it out.",
            param="best_of",
        )


def _timeout_s(request: Request, most_s: float) -> float:
    sent = request.headers.get(_TIMEOUT_HEADER)
    if sent is None:
        return most_s
    try:
        asked_s = float(sent)
    except ValueError:
        asked_s = math.nan
    if not asked_s > 0:  # also when it is not a number
        raise PipelineError(
            ErrorCode.VALUE_OUT_OF_RANGE, f"The header {_TIMEOUT_HEADER} must be a number of seconds above 0."
        )
    return min(asked_s, most_s)


async def _read(services: Dependencies, request: Request, timeout_s: float) -> CompletionRequest:
    settings = services.settings
    try:
        body = await asyncio.wait_for(read_body(request, settings.max_body_bytes), timeout_s)
    except asyncio.TimeoutError:
        raise PipelineError(ErrorCode.DEADLINE_EXCEEDED, "The body did not arrive in time.") from None
    if len(body) > _LARGE_BODY_BYTES:
        completion, unknown = await asyncio.to_thread(_parse, settings, body)
    else:
        completion, unknown = _parse(settings, body)
    if unknown:
        services.metrics.unknown_fields.inc(unknown)
    return completion


def _parse(settings: FrontendSettings, body: bytes) -> tuple[CompletionRequest, int]:
    return validate(parse_object(body), most_choices=settings.most_choices, is_strict=settings.strict_fields)


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
