"""Runs the app with uvicorn and drains it on SIGTERM."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from types import FrameType

import structlog
import uvicorn
from starlette.types import ASGIApp

from frontend.app import build_app
from frontend.backends.factory import create_generator
from frontend.dependencies import Dependencies, build_dependencies
from frontend.generation.admission import Admission
from frontend.keys.keys_file import KeysFileError
from frontend.models.registry import deployment_of
from frontend.multiprocess.shared_engines import shared_engine_numbers
from frontend.multiprocess.shared_state import SharedState
from frontend.observability.metrics import Metrics
from frontend.observability.request_log import configure_logging
from frontend.observability.tracing_factory import create_tracing
from frontend.response.cors import CorsPolicy
from frontend.response.slow_clients import SlowClientMonitor
from frontend.settings import FrontendSettings
from frontend.transport.connections import ConnectionLimits, ConnectionTable
from frontend.transport.descriptors import BACKLOG, DescriptorLimitError, connection_limit
from frontend.transport.forwarded import ForwardedHeaders
from frontend.transport.protocol import BoundedHttpProtocol, protocol_class
from llm_pipeline.runtime.deployment_errors import DeploymentError
from llm_pipeline.runtime.gc_freeze import freeze_startup_objects
from llm_pipeline.runtime.tracing_settings import TracingError

log = structlog.get_logger(__name__)

_LAST_WRITES_S = 5  # for responses that are cancelled at the end of the drain


class DrainingServer(uvicorn.Server):
    """A uvicorn server that drains before it stops accepting connections.

    uvicorn by itself closes its listening sockets at the first signal, so that no load balancer could see the readiness
    probe fail. A second signal ends the process at once.
    """

    def __init__(self, config: uvicorn.Config, dependencies: Dependencies, connections: ConnectionTable) -> None:
        super().__init__(config)
        self._dependencies = dependencies
        self._loop: asyncio.AbstractEventLoop | None = None
        self._drain: asyncio.Task[None] | None = None
        self._slow_clients = SlowClientMonitor(
            lambda: self.server_state.connections,
            limit_s=dependencies.settings.client_write_timeout_s,
            on_cut=dependencies.metrics.slow_clients.inc,
        )
        self._connections = connections
        self._watches: list[asyncio.Task[None]] = []

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Starts to listen, after the background tasks that need the event loop."""
        self._loop = asyncio.get_running_loop()
        self._watches = [
            asyncio.create_task(self._slow_clients.watch()),
            asyncio.create_task(self._connections.watch()),
        ]
        await super().startup(sockets)
        freeze_startup_objects()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Closes connections. Slow clients are cut off until the end, and incomplete requests as well."""
        try:
            await super().shutdown(sockets)
        finally:
            for watch in self._watches:
                watch.cancel()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The signal handler. It runs between any two bytecodes of the main thread."""
        if sig == signal.SIGINT and self._dependencies.workers.count > 1:
            return  # Ctrl-C reaches every process of the terminal, and the supervisor forwards it as well
        if self._loop is None or self._dependencies.admission.is_draining:
            self.should_exit = self.force_exit = True
            return
        self._dependencies.admission.is_draining = True
        self._loop.call_soon_threadsafe(self._start_draining)

    def _start_draining(self) -> None:
        self._connections.is_draining = True
        for connection in list(self.server_state.connections):
            if isinstance(connection, BoundedHttpProtocol):
                connection.drain()
        self._drain = asyncio.create_task(self._drain_and_exit())

    async def _drain_and_exit(self) -> None:
        log.info("draining", in_flight=self._dependencies.admission.in_flight)
        await self._dependencies.drain()
        self.should_exit = True


def build_server(app: ASGIApp, dependencies: Dependencies) -> DrainingServer:
    """The server of one worker, or of the only process. Raises DescriptorLimitError."""
    settings = dependencies.settings
    connections = ConnectionTable(
        ConnectionLimits(connection_limit(settings.max_connections), head_timeout_s=settings.head_timeout_s)
    )
    base_url = str(settings.public_url or f"http://{settings.host}:{settings.port}").rstrip("/")
    if settings.trusted_proxies:
        trusted = list(settings.trusted_proxies)
        app = ForwardedHeaders(app, trusted_hosts=trusted)  # type: ignore[arg-type]  # uvicorn's types
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=protocol_class(
            connections,
            max_head_bytes=settings.max_head_bytes,
            schema_url=f"{base_url}/openai/schemas/Error.json",
            cors=CorsPolicy(settings.cors_origins),
        ),
        log_config=None,
        access_log=False,  # the middleware logs one line per request
        server_header=False,
        proxy_headers=False,  # it would believe the headers of any client on this machine
        ws="none",
        timeout_keep_alive=settings.idle_timeout_s,
        timeout_graceful_shutdown=_LAST_WRITES_S,
        backlog=BACKLOG,
    )
    return DrainingServer(config, dependencies, connections)


def serve(settings: FrontendSettings, workers: SharedState, listener: socket.socket | None = None) -> int:
    """Serves until a signal, as the only process or as a worker with its listening socket. Returns the exit status."""
    metrics = Metrics(shared_engine_numbers(workers), worker=workers.number)
    try:
        tracing = create_tracing(metrics.count_spans)
        observers = {} if tracing is None else {"on_traced": tracing.record_engine}
        deployment = deployment_of(settings)
        admission = Admission(settings.max_in_flight, workers)
        generators = {
            model.name: create_generator(
                model, settings, metrics.endpoints_of_model(model.name, **observers), on_lost=admission.fail_lost
            )
            for model in deployment.models
        }
        dependencies = build_dependencies(
            settings,
            generators,
            deployment,
            workers=workers,
            metrics=metrics,
            admission=admission,
            tracing=tracing,
        )
        server = build_server(build_app(dependencies), dependencies)
    except (KeysFileError, DeploymentError, DescriptorLimitError, TracingError) as error:
        sys.stderr.write(f"The front end cannot start: {error}\n")
        return 2
    add_ids = None if tracing is None else tracing.add_ids
    configure_logging(settings, worker=workers.number if workers.count > 1 else None, add_trace_ids=add_ids)
    server.run(sockets=None if listener is None else [listener])
    if tracing is not None:
        tracing.close()
    return 0
