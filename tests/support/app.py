"""Runs the app with a fake generator, in this process or behind a real server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
from fastapi import FastAPI

from frontend.app import build_app
from frontend.backends.fake import FakeGenerator
from frontend.backends.generator import Generator
from frontend.dependencies import Dependencies, build_dependencies
from frontend.generation.completion_run import RunLimits
from frontend.server import DrainingServer, build_server
from frontend.settings import FrontendSettings
from llm_pipeline.protocol.messages import CompletionParameters, TextChunk

MODEL = "tiny"
KEY = "secret-key"


def make_settings(**values: Any) -> FrontendSettings:
    """Settings of a test app: one model, one key, a free port."""
    return FrontendSettings(
        **{"model_name": MODEL, "api_key": KEY, "port": 0, "health_check_interval_s": 0.05, **values}
    )


@dataclass
class Running:
    """A running app: its generator, and a client that has its key."""

    app: FastAPI
    dependencies: Dependencies
    generator: FakeGenerator
    client: httpx.AsyncClient
    server: DrainingServer | None = None  # with `real_server` only

    async def complete(self, **fields: object) -> httpx.Response:
        return await self.client.post("/openai/v1/completions", json={"model": MODEL, "prompt": "Hi", **fields})

    async def chat(self, content: str = "Hi", **fields: object) -> httpx.Response:
        messages = [{"role": "user", "content": content}]
        return await self.client.post("/v1/chat/completions", json={"model": MODEL, "messages": messages, **fields})

    async def metric(self, line_start: str) -> float:
        text = (await self.client.get("/metrics")).text
        return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(line_start))


StartApp = Callable[..., AbstractAsyncContextManager[Running]]


async def until(condition: Callable[[], bool | Awaitable[bool]], timeout_s: float = 5.0) -> None:
    """Waits for a condition that no event announces."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        found = condition()
        if found is True or (not isinstance(found, bool) and await found):
            return
        assert time.monotonic() < deadline_s, "the condition was not met in time"
        await asyncio.sleep(0.01)


async def completed(generator: Generator, parameters: CompletionParameters) -> list[TextChunk]:
    """Runs one completion and returns its chunks."""
    chunks: list[TextChunk] = []
    await generator.generate(parameters, chunks.append)
    return chunks


@asynccontextmanager
async def in_process(generator: FakeGenerator | None = None, **values: Any) -> AsyncIterator[Running]:
    """The app behind httpx, without sockets."""
    generator = generator or FakeGenerator()
    dependencies = build_dependencies(make_settings(**values), generator)
    app = build_app(dependencies)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    headers = {"Authorization": f"Bearer {KEY}"}
    client = httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=headers)
    async with app.router.lifespan_context(app), client:
        if getattr(generator, "is_up", True):
            await until(lambda: dependencies.is_ready)
        yield Running(app, dependencies, generator, client)


@asynccontextmanager
async def real_server(
    generator: FakeGenerator | None = None, *, run_limits: RunLimits | None = None, **values: Any
) -> AsyncIterator[Running]:
    """The app behind uvicorn on a free port, where clients can disconnect."""
    generator = generator or FakeGenerator()
    dependencies = build_dependencies(make_settings(**values), generator, run_limits=run_limits)
    app = build_app(dependencies)
    server = build_server(app, dependencies)
    serving = asyncio.create_task(server.serve())
    await until(lambda: server.started and dependencies.is_ready)
    port = server.servers[0].sockets[0].getsockname()[1]
    headers = {"Authorization": f"Bearer {KEY}"}
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=headers) as client:
        yield Running(app, dependencies, generator, client, server)
    server.should_exit = True
    await asyncio.wait_for(serving, 10)
