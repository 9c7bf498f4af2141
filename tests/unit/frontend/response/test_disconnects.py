"""Clients that leave: the engine is told, whatever kind of answer they waited for. On real sockets."""

from __future__ import annotations

import asyncio
import json

import pytest

from frontend.backends.fake import FakeGenerator, forever
from frontend.generation import completion_run as run
from frontend.response import answer
from llm_pipeline.protocol.messages import TextChunk
from tests.support.app import KEY, MODEL, Running, real_server, until


def head(length: int) -> bytes:
    fields = f"Host: x\r\nAuthorization: Bearer {KEY}\r\nContent-Length: {length}\r\n"
    return f"POST /v1/completions HTTP/1.1\r\n{fields}\r\n".encode()


async def send_and_leave(app: Running, *, stream: bool, prompt: object = "Hi") -> None:
    """Sends a request, waits until it runs (or streams), and closes the connection."""
    host, port = app.client.base_url.host, app.client.base_url.port
    reader, writer = await asyncio.open_connection(host, port)
    body = json.dumps({"model": MODEL, "prompt": prompt, "stream": stream}).encode()
    writer.write(head(len(body)) + body)
    await until(lambda: bool(app.generator.running))
    if stream:
        await reader.readuntil(b"data: ")
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_stops_its_request(stream: bool) -> None:
    async with real_server(FakeGenerator(forever())) as app:
        await send_and_leave(app, stream=stream)
        await app.generator.until_stopped()
        await until(lambda: not app.generator.running)
        assert app.generator.stopped == [app.generator.asked[0].request_key]
        await until(lambda: app.dependencies.admission.in_flight == 0)
        assert await app.metric('completions_cancelled_total{model="tiny",reason="client_gone"}') == 1
        assert await app.metric('completions_requests_total{model="tiny",status="499"}') == 1


async def test_all_choices_are_stopped() -> None:
    async with real_server(FakeGenerator(forever())) as app:
        await send_and_leave(app, stream=True, prompt=["a", "b", "c"])
        await app.generator.until_stopped(3)
        assert set(app.generator.stopped) == {asked.request_key for asked in app.generator.asked}


async def test_a_stop_that_fails_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "_FIRST_REPEAT_S", 0.01)
    generator = FakeGenerator(forever())
    generator.failing_stops = 2
    async with real_server(generator) as app:
        await send_and_leave(app, stream=True)
        await generator.until_stopped()
        await until(lambda: not generator.running)


async def test_an_engine_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "_FIRST_REPEAT_S", 0.01)
    monkeypatch.setattr(run, "LINGER_S", 0.05)
    generator = FakeGenerator(forever())
    generator.failing_stops = 1000
    async with real_server(generator) as app:
        await send_and_leave(app, stream=False)
        await until(lambda: not generator.running)
        await until(lambda: app.dependencies.admission.in_flight == 0)


async def test_a_connection_serves_many_requests(served: Running) -> None:
    for _ in range(3):
        assert (await served.complete(stream=True)).status_code == 200
        assert (await served.complete()).status_code == 200
    assert served.generator.stopped == []


async def test_a_client_that_leaves_while_sending_its_body(served: Running) -> None:
    host, port = served.client.base_url.host, served.client.base_url.port
    _, writer = await asyncio.open_connection(host, port)
    writer.write(head(100) + b"{")
    await writer.drain()
    writer.close()

    async def is_counted() -> bool:
        return await served.metric('completions_requests_total{model="none",status="499"}') == 1

    await until(is_counted)


async def test_a_client_that_does_not_read_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its full buffers block our writing, so that the deadline cannot be told to it."""
    monkeypatch.setattr(answer, "_WRITE_GRACE_S", 0.1)
    endless = [TextChunk("x" * 100_000, number) for number in range(1, 200)]
    async with real_server(FakeGenerator(lambda _: [*endless, asyncio.Event()]), request_timeout_s=0.3) as app:
        host, port = app.client.base_url.host, app.client.base_url.port
        _, writer = await asyncio.open_connection(host, port, limit=1024)
        body = json.dumps({"model": MODEL, "prompt": "Hi", "stream": True}).encode()
        writer.write(head(len(body)) + body)
        await app.generator.until_stopped()

        async def is_counted() -> bool:
            return await app.metric('completions_requests_total{model="tiny",status="504"}') == 1

        await until(is_counted)
        writer.close()
