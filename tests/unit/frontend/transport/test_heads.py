"""Request heads are bounded in bytes, number and time, on real sockets; errors have the form of the API."""

from __future__ import annotations

import asyncio

import pytest

from frontend.transport.protocol import MAX_HEADERS, MAX_PIPELINED
from tests.support.app import real_server
from tests.support.raw_http import LIVE, completion_request, connect, post_head

KIB = 1024


def head_with(headers: bytes) -> bytes:
    return b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n" + headers + b"\r\n"


TOO_LARGE = {
    "one header": head_with(b"X-A: " + b"a" * 65 * KIB + b"\r\n"),
    "one header without its end": b"GET /health/live HTTP/1.1\r\nX-A: " + b"a" * 1024 * KIB,
    "many headers": head_with(b"".join(b"X-%d: %s\r\n" % (i, b"a" * KIB) for i in range(66))),
    "request line": b"GET /health/live?" + b"a" * 65 * KIB + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "request line without its end": b"GET /" + b"a" * 1024 * KIB,
    "name without its end": b"GET / HTTP/1.1\r\n" + b"a" * 1024 * KIB,
    "number of headers": head_with(b"X: \r\n" * MAX_HEADERS),
}


@pytest.mark.parametrize("head", TOO_LARGE.values(), ids=TOO_LARGE)
async def test_head_beyond_the_limit_gets_a_431_and_the_connection_closes(head: bytes) -> None:
    async with real_server() as app, connect(app) as connection:
        connection.write(head)
        response = await connection.response()
        assert (response.status, response.error_code) == (431, "headers_too_large")
        assert response.headers["connection"] == "close"
        assert await connection.is_closed()


async def test_head_within_the_limits_is_served() -> None:
    large = head_with(b"X-A: " + b"a" * 60 * KIB + b"\r\n" + b"X: y\r\n" * (MAX_HEADERS - 3))
    async with real_server() as app, connect(app) as connection:
        for start in range(0, len(large), 20_000):
            connection.write(large[start : start + 20_000])
            await connection.sent()
        assert (await connection.response()).status == 200
        connection.write(LIVE)
        assert (await connection.response()).status == 200


async def test_head_of_exactly_the_limit_is_served() -> None:
    start = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\nX-A: "
    head = start + b"a" * (64 * KIB - len(start) - 4) + b"\r\n\r\n"
    assert len(head) == 64 * KIB
    async with real_server() as app, connect(app) as connection:
        connection.write(head)
        assert (await connection.response()).status == 200


@pytest.mark.parametrize("before", [b"", LIVE], ids=["first", "after-a-request"])
@pytest.mark.parametrize("part", [b"G", b"GET / HTTP/1.1\r\nX-A: b", b"\r\n"], ids=["method", "header", "line-end"])
async def test_head_that_is_not_complete_in_time_gets_a_408(before: bytes, part: bytes) -> None:
    async with real_server(head_timeout_s=0.3) as app, connect(app) as connection:
        connection.write(before)
        if before:
            assert (await connection.response()).status == 200
        connection.write(part)
        response = await connection.response()
        assert (response.status, response.error_code) == (408, "request_timeout")
        assert await connection.is_closed()


async def test_bytes_that_trickle_do_not_extend_the_time_of_a_head() -> None:
    async with real_server(head_timeout_s=0.5) as app, connect(app) as connection:
        started_s = asyncio.get_running_loop().time()
        connection.write(b"GET / HTTP/1.1\r\n")
        trickle = asyncio.create_task(_trickle(connection.write))
        assert (await connection.response()).status == 408
        trickle.cancel()
        assert asyncio.get_running_loop().time() - started_s < 5


async def _trickle(write: object) -> None:
    assert callable(write)
    while True:
        write(b"X-A: b\r\n")
        await asyncio.sleep(0.05)


async def test_connection_without_a_byte_closes_silently() -> None:
    async with real_server(head_timeout_s=0.3) as app, connect(app) as connection:
        assert await connection.is_closed()


async def test_idle_connection_closes_after_its_time() -> None:
    async with real_server(idle_timeout_s=1) as app, connect(app) as connection:
        connection.write(LIVE)
        assert (await connection.response()).status == 200
        assert await connection.is_closed()


async def test_slow_request_is_not_affected_by_the_time_of_heads() -> None:
    async with real_server(head_timeout_s=0.2) as app, connect(app) as connection:
        body = b'{"model": "tiny", "prompt": "Hi", "max_tokens": 2}'
        connection.write(post_head(length=len(body)))
        for byte in body:
            connection.write(bytes([byte]))
            await asyncio.sleep(0.02)
        assert (await connection.response()).status == 200


async def test_invalid_http_gets_an_error_of_the_api() -> None:
    async with real_server() as app, connect(app) as connection:
        connection.write(b"\x16\x03\x01\x02\x00\r\n\r\n")  # TLS on the port of HTTP
        response = await connection.response()
        assert (response.status, response.error_code) == (400, "invalid_http")
        assert await connection.is_closed()


async def test_pipelined_requests_are_answered_in_order_up_to_their_limit() -> None:
    async with real_server() as app, connect(app) as connection:
        connection.write(LIVE * 1000)
        responses = [await connection.response() for _ in range(MAX_PIPELINED + 1)]
        assert {response.status for response in responses} == {200}
        assert responses[-1].headers["connection"] == "close"
        assert await connection.is_closed()


async def test_garbage_after_a_request_does_not_break_its_response() -> None:
    async with real_server() as app, connect(app) as connection:
        connection.write(completion_request() + b"\x00garbage\r\n\r\n")
        response = await connection.response()
        assert response.status == 200
        assert b'"choices"' in response.body
        assert await connection.is_closed()


async def test_pipelined_head_beyond_the_limit_does_not_break_the_response_before_it() -> None:
    async with real_server() as app, connect(app) as connection:
        connection.write(completion_request() + TOO_LARGE["many headers"])
        response = await connection.response()
        assert response.status == 200
        assert b'"choices"' in response.body
        assert await connection.is_closed()
