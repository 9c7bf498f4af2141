"""Disconnecting clients: their requests are cancelled in the engine, streaming or not. On real sockets."""

from __future__ import annotations

import asyncio
import json

import pytest

from frontend.backends.cancellation import CancelTimeouts
from frontend.backends.fake import FakeGenerator, forever
from frontend.generation.completion_run import RunLimits
from llm_pipeline.protocol.messages import TextChunk
from tests.support.app import KEY, MODEL, Running, real_server, until


def head(length: int) -> bytes:
    fields = f"Host: localhost\r\nAuthorization: Bearer {KEY}\r\nContent-Length: {length}\r\n"
    return f"POST /v1/completions HTTP/1.1\r\n{fields}\r\n".encode()


async def send_and_disconnect(app: Running, *, stream: bool, prompt: object = "Hi") -> None:
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
async def test_disconnect_cancels_the_request(stream: bool) -> None:
    async with real_server(FakeGenerator(forever())) as app:
        await send_and_disconnect(app, stream=stream)
        await app.generator.until_cancelled()
        await until(lambda: not app.generator.running)
        assert app.generator.cancelled == [app.generator.requests[0].request_key]
        await until(lambda: app.dependencies.admission.in_flight == 0)
        assert await app.metric('completions_cancelled_total{model="tiny",reason="client_gone"}') == 1
        assert await app.metric('completions_requests_total{model="tiny",status="499"}') == 1


async def test_disconnect_cancels_all_choices() -> None:
    async with real_server(FakeGenerator(forever())) as app:
        await send_and_disconnect(app, stream=True, prompt=["a", "b", "c"])
        await app.generator.until_cancelled(3)
        assert set(app.generator.cancelled) == {sent.request_key for sent in app.generator.requests}


async def test_failed_cancellation_is_repeated() -> None:
    limits = RunLimits(cancel=CancelTimeouts(first_repeat_s=0.01))
    generator = FakeGenerator(forever())
    generator.failing_cancels = 2
    async with real_server(generator, run_limits=limits) as app:
        await send_and_disconnect(app, stream=True)
        await generator.until_cancelled()
        await until(lambda: not generator.running)


async def test_request_that_the_engine_never_ends_is_abandoned() -> None:
    limits = RunLimits(cancel=CancelTimeouts(confirm_s=0.05, first_repeat_s=0.01))
    generator = FakeGenerator(forever())
    generator.failing_cancels = 1000
    async with real_server(generator, run_limits=limits) as app:
        await send_and_disconnect(app, stream=False)
        await until(lambda: not generator.running)
        await until(lambda: app.dependencies.admission.in_flight == 0)


async def test_connection_serves_many_requests(served: Running) -> None:
    for _ in range(3):
        assert (await served.complete(stream=True)).status_code == 200
        assert (await served.complete()).status_code == 200
    assert served.generator.cancelled == []


async def test_disconnect_while_sending_the_body_is_counted_as_499(served: Running) -> None:
    host, port = served.client.base_url.host, served.client.base_url.port
    _, writer = await asyncio.open_connection(host, port)
    writer.write(head(100) + b"{")
    await writer.drain()
    writer.close()

    async def is_counted() -> bool:
        return await served.metric('completions_requests_total{model="none",status="499"}') == 1

    await until(is_counted)


async def test_response_to_a_client_that_does_not_read_is_aborted_after_the_deadline() -> None:
    """The client's full buffers block the response, so that the error cannot be written."""
    endless = [TextChunk("x" * 100_000, number) for number in range(1, 200)]
    generator = FakeGenerator(lambda _: [*endless, asyncio.Event()])
    async with real_server(generator, run_limits=RunLimits(write_grace_s=0.1), request_timeout_s=0.3) as app:
        host, port = app.client.base_url.host, app.client.base_url.port
        _, writer = await asyncio.open_connection(host, port, limit=1024)
        body = json.dumps({"model": MODEL, "prompt": "Hi", "stream": True}).encode()
        writer.write(head(len(body)) + body)
        await app.generator.until_cancelled()

        async def is_counted() -> bool:
            return await app.metric('completions_requests_total{model="tiny",status="504"}') == 1

        await until(is_counted)
        writer.close()
