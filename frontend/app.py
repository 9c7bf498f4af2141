"""Assembles the ASGI app: routers, middleware and background tasks around the dependencies of the route handlers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress

import structlog
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware

from frontend.api import completions, documents, health, metrics, models, playground
from frontend.api.middleware import RequestContextMiddleware
from frontend.api.near_paths import handle_router_error
from frontend.api.openapi import DocumentedApi
from frontend.backends.generator import Generator
from frontend.dependencies import Dependencies, build_dependencies
from frontend.multiprocess.heartbeat_loop import run_heartbeat
from frontend.settings import ANY_ORIGIN, FrontendSettings
from llm_pipeline.runtime.deployment import Deployment

log = structlog.get_logger(__name__)


def create_app(
    settings: FrontendSettings,
    generators: Generator | Mapping[str, Generator],
    deployment: Deployment | None = None,
) -> DocumentedApi:
    """The app of a front end with one process, for tests and for embedding. Arguments as for `build_dependencies`."""
    return build_app(build_dependencies(settings, generators, deployment))


def build_app(dependencies: Dependencies) -> DocumentedApi:
    """The app of one worker, or of the only process."""
    settings = dependencies.settings
    app = DocumentedApi(
        example_model=dependencies.models.first.name,
        requires_key=settings.auth == "on",
        # The document and its page depend on the URL that a client uses: `api.documents` serves them.
        openapi_url=None,
        redirect_slashes=False,
        # Otherwise FastAPI looks for OpenTelemetry providers on every request: 5 % of the CPU time of a short one.
        telemetry={"tracing": False, "metrics": False, "logs": False},
        middleware=[
            Middleware(
                RequestContextMiddleware,
                settings=settings,
                keys=dependencies.keys,
                metrics=dependencies.metrics,
                journal=dependencies.journal,
                tracing=dependencies.tracing,
            )
        ],
        exception_handlers={HTTPException: handle_router_error},
        lifespan=lambda _: _lifespan(dependencies),
    )
    app.state.dependencies = dependencies
    playground.load_files()
    completions.add_routes(app)
    for api in (models, health, metrics, documents, playground):
        app.include_router(api.router)
    return app


@asynccontextmanager
async def _lifespan(dependencies: Dependencies) -> AsyncIterator[None]:
    if dependencies.settings.auth == "off":
        log.warning("auth_is_off", advice="every client that can reach the port may use the models; set API_KEY")
        if ANY_ORIGIN in dependencies.settings.cors_origins:
            log.warning("any_page_may_use_this_server", advice="name the origins in CORS_ORIGINS, or set API_KEY")
    if dependencies.settings.backend == "fake":
        log.warning("fake_backend", advice="completions are fixed text; set BACKEND=triton to serve a model")
    if not dependencies.settings.is_loopback and dependencies.settings.public_url is None:
        log.warning("public_url_is_unset", advice="links in responses repeat the Host header; set PUBLIC_URL")
    keys, admission = dependencies.keys, dependencies.admission
    watches = [asyncio.create_task(model.readiness.watch()) for model in dependencies.models]
    watches.append(asyncio.create_task(keys.watch(lambda: admission.fail_revoked(keys.is_valid))))
    if dependencies.journal is not None:
        watches.append(asyncio.create_task(dependencies.journal.watch()))
    async with run_heartbeat(dependencies.workers, dependencies.merged_metrics, lambda: dependencies.is_ready):
        yield
    for watch in watches:
        watch.cancel()
        with suppress(asyncio.CancelledError):
            await watch
    await dependencies.admission.wait_until_idle()
    await dependencies.key_rates.close()
    if dependencies.journal is not None:
        await dependencies.journal.close()
    for model in dependencies.models:
        await model.generator.close()
