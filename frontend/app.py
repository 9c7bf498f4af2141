"""Puts the front end together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial

import structlog
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware

from frontend.api import completions, models, playground
from frontend.api import health as operations
from frontend.api.auth import ApiKeyStore
from frontend.api.middleware import RequestContextMiddleware
from frontend.backends.generator import Generator
from frontend.dependencies import Dependencies
from frontend.generation.admission import Admission
from frontend.generation.rate_limits import RateLimits
from frontend.models.registry import ModelRegistry, ServedModel, deployment_of
from frontend.multiprocess.heartbeat_loop import run_heartbeat
from frontend.multiprocess.merged_metrics import MergedMetrics
from frontend.multiprocess.shared_state import SharedState
from frontend.observability.metrics import Metrics
from frontend.response.errors import handle_router_error
from frontend.settings import FrontendSettings
from llm_pipeline.runtime.deployment import Deployment

log = structlog.get_logger(__name__)


def create_app(
    settings: FrontendSettings,
    generators: Generator | Mapping[str, Generator],
    deployment: Deployment | None = None,
    *,
    workers: SharedState | None = None,
    metrics: Metrics | None = None,
) -> FastAPI:
    """The ASGI app of one worker or of the only one, with a generator for each model by its name, or one for all.

    Left out, the deployment is what the settings say. KeysFileError, DeploymentError. `app.state.services` has its
    parts.
    """
    deployment = deployment or deployment_of(settings)
    if not isinstance(generators, Mapping):
        generators = dict.fromkeys((model.name for model in deployment.models), generators)
    workers, metrics = workers or SharedState.single_process(), metrics or Metrics()
    admission = Admission(settings.max_in_flight, workers)
    services = Dependencies(
        settings=settings,
        models=ModelRegistry(deployment, generators, settings, metrics, workers, admission),
        metrics=metrics,
        admission=admission,
        rate_limits=RateLimits(workers),
        workers=workers,
        metrics_of_all=MergedMetrics(workers, metrics.registry) if workers.count > 1 else None,
    )
    for model in services.models:
        metrics.watch(model.name, model.in_flight_limit, partial(_accepts, services, model))
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
        middleware=[
            Middleware(RequestContextMiddleware, settings=settings, keys=ApiKeyStore(settings), metrics=metrics)
        ],
        exception_handlers={HTTPException: handle_router_error},
        lifespan=_lifespan,
    )
    app.state.services = services
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    services: Dependencies = app.state.services
    if services.settings.auth == "off":
        log.warning("auth_is_off", advice="everybody who can reach the port may use the model; set API_KEY")
    watches = [asyncio.create_task(model.readiness.watch()) for model in services.models]
    async with run_heartbeat(services.workers, services.metrics_of_all, lambda: services.is_ready):
        yield
    for watch in watches:
        watch.cancel()
        with suppress(asyncio.CancelledError):
            await watch
    await services.admission.wait_until_idle()
    for model in services.models:
        await model.generator.close()


def _accepts(services: Dependencies, model: ServedModel) -> bool:
    return model.readiness.is_ready and not services.admission.is_draining
