"""A client that does not read its response uses bounded memory for a bounded time. On real sockets."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator

import orjson
import pytest

from frontend.backends.fake import FakeGenerator, ScriptStep
from frontend.generation.completion_run import RunLimits, merge_chunks
from llm_pipeline.protocol.messages import FinishReason, TextChunk
from tests.support.app import KEY, MODEL, Running, real_server, until


async def open_client_that_does_not_read(app: Running, receive_buffer: int = 4096, **fields: object) -> socket.socket:
    """Sends a request and reads nothing."""
    host, port = app.client.base_url.host, app.client.base_url.port
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    client.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(client, (host, port))
    body = json.dumps({"model": MODEL, "prompt": "Hi", **fields}).encode()
    fields_sent = f"Host: localhost\r\nAuthorization: Bearer {KEY}\r\nContent-Length: {len(body)}\r\n"
    await loop.sock_sendall(client, f"POST /v1/completions HTTP/1.1\r\n{fields_sent}\r\n".encode() + body)
    return client


def is_reset(client: socket.socket) -> bool:
    try:
        while client.recv(65536):
            pass
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True
    raise AssertionError("closed instead of reset")


def endless(size: int) -> Iterator[TextChunk]:
    number = 0
    while True:
        number += 1
        yield TextChunk("x" * size, number)


@pytest.mark.parametrize("stream", [True, False])
async def test_client_that_does_not_read_is_disconnected(stream: bool) -> None:
    big = TextChunk("x" * 8_000_000, 1)
    script: list[ScriptStep] = (
        [big, asyncio.Event()] if stream else [big, TextChunk("", 1, None, 1, FinishReason.LENGTH)]
    )
    async with real_server(FakeGenerator(lambda _: script), client_write_timeout_s=0.3) as app:
        client = await open_client_that_does_not_read(app, stream=stream)
        server = app.server
        assert server is not None
        await until(lambda: server.server_state.connections != set())
        await until(lambda: _metric_is(app, "completions_slow_readers_total", 1))
        await until(lambda: is_reset(client))
        client.close()
        await until(lambda: app.dependencies.admission.in_flight == 0)


async def _metric_is(app: Running, name: str, value: float) -> bool:
    return await app.metric(name) == value


async def test_slow_client_that_keeps_reading_is_not_disconnected() -> None:
    text = "x" * 3_000_000
    script = [TextChunk(text, 1, None, 1), TextChunk("", 1, None, 1, FinishReason.LENGTH)]
    async with real_server(FakeGenerator(lambda _: script), client_write_timeout_s=1.0) as app:
        client = await open_client_that_does_not_read(app, 2**17, stream=True)
        loop, got = asyncio.get_running_loop(), b""
        started_s = loop.time()
        while not got.endswith(b"0\r\n\r\n"):
            part = await asyncio.wait_for(loop.sock_recv(client, 200_000), 5)
            assert part, "cut off"
            got += part
            await asyncio.sleep(0.05)
        client.close()
        assert loop.time() - started_s > 1.0
        assert got.count(b"x") >= len(text)
        assert await app.metric("completions_slow_readers_total") == 0


async def test_unread_text_is_bounded_and_the_request_is_cancelled() -> None:
    limits = RunLimits(max_untaken_characters=100_000)
    generator = FakeGenerator(lambda _: endless(100))
    async with real_server(generator, run_limits=limits, client_write_timeout_s=60) as app:
        client = await open_client_that_does_not_read(app, stream=True)
        await app.generator.until_cancelled()
        (running,) = app.dependencies.admission.runs
        assert running.untaken_chunks <= limits.merge_chunks
        assert running.untaken_characters < 200_000
        assert await app.metric('completions_cancelled_total{model="tiny",reason="slow_reader"}') == 1
        client.close()
        await until(lambda: app.dependencies.admission.in_flight == 0)


def test_merged_chunks_equal_their_sum() -> None:
    parts = [
        TextChunk("a", 1, (1,), 5),
        TextChunk("", 2, (2,)),
        TextChunk("bc", 4, (3, 4), 5, FinishReason.STOP),
    ]
    assert merge_chunks(parts) == TextChunk("abc", 4, (1, 2, 3, 4), 5, FinishReason.STOP)
    assert merge_chunks([TextChunk("a", 1), TextChunk("b", 2)]) == TextChunk("ab", 2)
    assert merge_chunks(parts[:1]) == parts[0]


def test_merged_chunks_keep_their_logprobs() -> None:
    def piece(token: str, offset: int) -> bytes:
        return orjson.dumps(
            {"tokens": [token], "token_logprobs": [-1.0], "top_logprobs": [{token: -1.0}], "text_offset": [offset]}
        )

    whole = merge_chunks(
        [TextChunk("a", 1, logprobs_json=piece("a", 0)), TextChunk("b", 2, logprobs_json=piece("b", 1))]
    )
    assert whole.logprobs_json is not None
    assert orjson.loads(whole.logprobs_json) == {
        "tokens": ["a", "b"],
        "token_logprobs": [-1.0, -1.0],
        "top_logprobs": [{"a": -1.0}, {"b": -1.0}],
        "text_offset": [0, 1],
    }
