"""Puts the front end together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial

import structlog
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware

from frontend.admission import Admission
from frontend.auth import KeyRing
from frontend.errors import handle_router_error
from frontend.generator import Generator
from frontend.metrics import Metrics
from frontend.metrics_of_all import MetricsOfAll
from frontend.middleware import RequestEnvelope
from frontend.model_card import ModelCard
from frontend.rate_limits import RateLimits
from frontend.readiness import Readiness
from frontend.routes import completions, models, operations, playground
from frontend.run import StopReason
from frontend.services import Services
from frontend.settings import FrontendSettings
from frontend.worker_life import live_as_worker
from frontend.workers import Workers
from llm_pipeline.errors import ErrorCode, PipelineError

log = structlog.get_logger(__name__)


def create_app(
    settings: FrontendSettings, generator: Generator, *, workers: Workers | None = None, metrics: Metrics | None = None
) -> FastAPI:
    """The ASGI app, of one worker or of the only one. Raises KeysFileError. `app.state.services` has its parts."""
    workers, metrics = workers or Workers.alone(), metrics or Metrics()
    admission = Admission(settings.max_in_flight, workers)
    services = Services(
        settings=settings,
        generator=generator,
        metrics=metrics,
        admission=admission,
        rate_limits=RateLimits(workers),
        readiness=Readiness(
            generator,
            check_s=settings.ready_check_s,
            idle_s=settings.warm_up_s,
            lost_s=settings.triton_lost_s,
            on_lost=partial(_end_what_waits, admission),
        ),
        workers=workers,
        metrics_of_all=MetricsOfAll(workers, metrics.registry) if workers.count > 1 else None,
        model_card=ModelCard(generator),
    )
    metrics.watch(services.admission, lambda: services.is_ready)
    # Plain routes instead of FastAPI's own: they parse and validate bodies in ways that the contract rules out.
    app = FastAPI(
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        # It looks for OpenTelemetry's providers on every request, which is a twentieth of a short one's cost.
        telemetry={"tracing": False, "metrics": False, "logs": False},
        routes=[
            *completions.routes(services),
            *models.routes(services),
            *operations.routes(services),
            *playground.routes(),
        ],
        middleware=[Middleware(RequestEnvelope, settings=settings, keys=KeyRing(settings), metrics=metrics)],
        exception_handlers={HTTPException: handle_router_error},
        lifespan=_lifespan,
    )
    app.state.services = services
    return app


def _end_what_waits(admission: Admission) -> None:
    message = "The model server has stopped answering; try again shortly."
    admission.fail_all(PipelineError(ErrorCode.SERVICE_UNAVAILABLE, message), StopReason.TRITON_LOST)


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    services: Services = app.state.services
    if services.settings.auth == "off":
        log.warning("auth_is_off", advice="everybody who can reach the port may use the model; set API_KEY")
    watch = asyncio.create_task(services.readiness.watch())
    async with live_as_worker(services):
        yield
    watch.cancel()
    with suppress(asyncio.CancelledError):
        await watch
    await services.admission.wait_until_idle()
    await services.generator.close()
