"""Runs the front end with uvicorn, and shuts it down without cutting off anybody."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from types import FrameType

import structlog
import uvicorn
from fastapi import FastAPI

from frontend.api.auth import KeysFileError
from frontend.app import create_app
from frontend.backends.factory import create_generator
from frontend.dependencies import Dependencies
from frontend.models.registry import deployment_of
from frontend.multiprocess.shared_state import SharedState
from frontend.observability.metrics import Metrics
from frontend.observability.request_log import configure_logging
from frontend.response.slow_clients import SlowClientMonitor
from frontend.settings import FrontendSettings
from llm_pipeline.runtime.deployment import DeploymentError
from llm_pipeline.runtime.gc_freeze import freeze_startup_objects

log = structlog.get_logger(__name__)

_LAST_WRITES_S = 5  # for answers that were stopped at the end of the drain

# Longer than load balancers keep idle connections (60 s is usual): whoever closes first must not be us, or a request
# that is on its way meets a closed door.
_KEEP_ALIVE_S = 75


class DrainingServer(uvicorn.Server):
    """uvicorn stops accepting connections at the first signal, so that nobody could see readiness turn 503.

    This one first drains with open doors. A second signal ends it at once.
    """

    def __init__(self, app: FastAPI, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._services: Dependencies = app.state.services
        self._loop: asyncio.AbstractEventLoop | None = None
        self._drain: asyncio.Task[None] | None = None
        self._slow_readers = SlowClientMonitor(
            lambda: self.server_state.connections,
            limit_s=self._services.settings.client_write_timeout_s,
            on_cut=self._services.metrics.slow_readers.inc,
        )
        self._slow_reader_watch: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        """See uvicorn."""
        self._loop = asyncio.get_running_loop()
        self._slow_reader_watch = asyncio.create_task(self._slow_readers.watch())
        await super().startup(sockets)  # type: ignore[arg-type]
        freeze_startup_objects()

    async def shutdown(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        """See uvicorn."""
        try:
            await super().shutdown(sockets)  # type: ignore[arg-type]
        finally:
            if self._slow_reader_watch is not None:
                self._slow_reader_watch.cancel()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The signal handler; runs between any two bytecodes of the main thread."""
        if sig == signal.SIGINT and self._services.workers.count > 1:
            return  # a Ctrl-C reaches everybody in the terminal, and the supervisor passes it on
        if self._loop is None or self._services.admission.is_draining:
            self.should_exit = self.force_exit = True
            return
        self._services.admission.is_draining = True
        self._loop.call_soon_threadsafe(self._start_draining)

    def _start_draining(self) -> None:
        self._drain = asyncio.create_task(self._drain_and_exit())

    async def _drain_and_exit(self) -> None:
        log.info("draining", in_flight=self._services.admission.in_flight)
        await self._services.drain()
        self.should_exit = True


def build_server(settings: FrontendSettings, app: FastAPI) -> DrainingServer:
    """One worker. Our own line per request replaces the access log."""
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        ws="none",
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=_LAST_WRITES_S,
        backlog=2048,
    )
    return DrainingServer(app, config)


def run(settings: FrontendSettings, workers: SharedState, listener: socket.socket | None = None) -> int:
    """Serve, as the only process or as one worker with its listening socket. Returns the exit status."""
    metrics = Metrics()
    try:
        deployment = deployment_of(settings)
        generators = {
            model.name: create_generator(model, settings, metrics.endpoints.of_model(model.name))
            for model in deployment.models
        }
        app = create_app(settings, generators, deployment, workers=workers, metrics=metrics)
    except (KeysFileError, DeploymentError) as error:
        sys.stderr.write(f"The front end cannot start: {error}\n")
        return 2
    configure_logging(settings, worker=workers.number if workers.count > 1 else None)
    build_server(settings, app).run(sockets=None if listener is None else [listener])
    return 0
