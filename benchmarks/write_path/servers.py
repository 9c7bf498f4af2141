"""The measured servers: plain sockets, uvicorn with an app that does nothing else, and the whole front end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from benchmarks.write_path.client import STREAM_TOKENS
from benchmarks.write_path.load import WriteEvent, wait_until
from frontend.app import build_app
from frontend.backends.fake import FakeGenerator
from frontend.backends.generator import OnChunk
from frontend.dependencies import build_dependencies
from frontend.response.event_writer import EventWriter
from frontend.server import build_server
from frontend.settings import FrontendSettings
from llm_pipeline.protocol.messages import CompletionParameters, FinishReason, TextChunk

EVENT = (
    b'data: {"id":"cmpl-0123456789abcdef0123456789abcdef","object":"text_completion","created":1234567890,'
    b'"model":"tiny","choices":[{"index":0,"text":" word","logprobs":null,"finish_reason":null}]}\n\n'
)
RESPONSE = EVENT[6:-2]  # for requests without a stream, about as long as a real one


class _RawConnection(asyncio.Protocol):
    def __init__(self, server: RawServer) -> None:
        self._server = server
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's do not inherit from it

    def data_received(self, data: bytes) -> None:
        if self._transport is not None:
            self._server.transports.append(self._transport)


class RawServer:
    """Accepts connections without HTTP. `transports` are those of connections that have sent a request."""

    def __init__(self) -> None:
        self.transports: list[asyncio.Transport] = []
        self.port = 0
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Starts to listen on a free port."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _RawConnection(self), "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Closes all connections."""
        for transport in self.transports:
            transport.close()
        if self._server is not None:
            self._server.close()


class BareApp:
    """An ASGI app that starts each streaming response and leaves its events to `writes`."""

    def __init__(self) -> None:
        self.writes: list[WriteEvent] = []
        self.is_over = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers with a constant; a request without a small max_tokens is a stream until `is_over`."""
        body = (await receive())["body"]
        if b'"max_tokens": 1,' in body:
            headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(RESPONSE))]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": RESPONSE})
            return
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        writer = EventWriter(scope, send)
        self.writes.append(lambda: writer.write(EVENT))
        await self.is_over.wait()
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class PushedGenerator(FakeGenerator):
    """Pushes a chunk into a stream when its `write` is called; completes other requests with one token at once."""

    def __init__(self) -> None:
        super().__init__(records_requests=False)
        self.writes: list[WriteEvent] = []
        self.is_over = asyncio.Event()

    async def generate(self, parameters: CompletionParameters, on_chunk: OnChunk) -> None:
        """Runs a stream until `is_over`."""
        if parameters.max_tokens != STREAM_TOKENS:
            on_chunk(TextChunk(" word", 1, None, 5, FinishReason.LENGTH))
            return
        on_chunk(TextChunk(" word", 1, None, 5))
        tokens = 1

        def write() -> None:
            nonlocal tokens
            tokens += 1
            on_chunk(TextChunk(" word", tokens))

        self.writes.append(write)
        await self.is_over.wait()
        on_chunk(TextChunk("", tokens, None, 5, FinishReason.LENGTH))


@asynccontextmanager
async def bare_uvicorn(app: ASGIApp) -> AsyncIterator[int]:
    """Serves an app with uvicorn as the front end configures it. Yields its port."""
    config = uvicorn.Config(
        app,
        port=0,
        log_config=None,
        access_log=False,
        server_header=False,
        ws="none",
        lifespan="off",
    )
    async with _serving(uvicorn.Server(config)) as port:
        yield port


@asynccontextmanager
async def front_end(generator: FakeGenerator) -> AsyncIterator[int]:
    """Serves the whole front end. Yields its port."""
    settings = FrontendSettings(model_name="tiny", auth="off", host="127.0.0.1", port=0, max_in_flight=4096)
    dependencies = build_dependencies(settings, generator)
    async with _serving(build_server(build_app(dependencies), dependencies)) as port:
        await wait_until(lambda: dependencies.is_ready)
        yield port


@asynccontextmanager
async def _serving(server: uvicorn.Server) -> AsyncIterator[int]:
    task = asyncio.create_task(server.serve())
    try:
        await wait_until(lambda: server.started)
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        await task
