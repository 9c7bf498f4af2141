"""Bodies are bounded in time, and all of them together in bytes, on real sockets."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.app import Running, real_server, until
from tests.support.raw_http import RawConnection, body_of, completion_request, connect, post_head

MIB = 2**20


def framed(part: bytes, length: int | None) -> bytes:
    """A part of a body, as a chunk if the body has no length."""
    return part if length is not None else b"%x\r\n%s\r\n" % (len(part), part)


def held_bytes(app: Running) -> int:
    return app.dependencies.settings.body_bytes_in_flight - app.dependencies.body_budget.free


@pytest.mark.parametrize("length", [1000, None], ids=["length", "chunked"])
@pytest.mark.parametrize("part", [b"", b"{"], ids=["nothing", "a-byte"])
async def test_body_without_progress_gets_a_408(part: bytes, length: int | None) -> None:
    async with real_server(body_timeout_s=0.3) as app, connect(app) as connection:
        connection.write(post_head(length=length) + (framed(part, length) if part else b""))
        response = await connection.response()
        assert (response.status, response.error_code) == (408, "request_timeout")
        assert await connection.is_closed()
        assert held_bytes(app) == 0


async def test_body_that_trickles_gets_a_408_although_it_progresses() -> None:
    async with real_server(body_timeout_s=0.5) as app, connect(app) as connection:
        connection.write(post_head(length=MIB))
        trickle = asyncio.create_task(_trickle(connection))
        assert (await connection.response()).status == 408
        trickle.cancel()


async def _trickle(connection: RawConnection) -> None:
    while True:
        connection.write(b"a")
        await asyncio.sleep(0.05)


async def test_slow_body_that_progresses_is_served() -> None:
    body = body_of(prompt="a" * 6000)
    async with real_server(body_timeout_s=0.5) as app, connect(app) as connection:
        connection.write(post_head(length=len(body)))
        for start in range(0, len(body), 500):
            connection.write(body[start : start + 500])
            await asyncio.sleep(0.1)
        assert (await connection.response()).status == 200


@pytest.mark.parametrize("length", [3 * MIB, None], ids=["length", "chunked"])
async def test_bodies_beyond_the_share_of_a_key_get_a_503_until_others_have_ended(length: int | None) -> None:
    part = framed(b"a" * (2 * MIB), length)
    async with real_server(max_body_bytes_in_flight=8 * MIB) as app:
        async with connect(app) as first, connect(app) as second, connect(app) as third:
            for connection in (first, second):
                connection.write(post_head(length=length) + part)
            await until(lambda: held_bytes(app) == 4 * MIB)
            third.write(post_head(length=length) + part)
            response = await third.response()
            assert (response.status, response.error_code) == (503, "service_unavailable")
            assert int(response.headers["retry-after"]) >= 1
            assert await third.is_closed()
            assert held_bytes(app) == 4 * MIB
        await until(lambda: held_bytes(app) == 0)
        assert (await app.complete()).status_code == 200


async def test_announced_bytes_do_not_count() -> None:
    async with (
        real_server(max_body_bytes_in_flight=8 * MIB) as app,
        connect(app) as first,
        connect(app) as second,
        connect(app) as third,
    ):
        for connection in (first, second):
            connection.write(post_head(length=4 * MIB))
        third.write(completion_request(prompt="a" * MIB))
        assert (await third.response()).status == 200


async def test_trailer_without_an_end_is_refused() -> None:
    """The parser keeps a trailer in memory until it is complete."""
    async with real_server() as app, connect(app) as connection:
        connection.write(post_head(length=None) + b"1\r\n{\r\n0\r\nX-Trailer: " + b"a" * 2 * MIB)
        response = await connection.response()
        assert (response.status, response.error_code) == (431, "headers_too_large")
        assert await connection.is_closed()


@pytest.mark.parametrize("chunk", [b"zz\r\n", b"5\r\nabcdefgh\r\n"], ids=["size", "end"])
async def test_invalid_chunk_ends_its_request_with_an_error(chunk: bytes) -> None:
    async with real_server() as app, connect(app) as connection:
        connection.write(post_head(length=None) + b"1\r\n{\r\n" + chunk)
        response = await connection.response()
        assert (response.status, response.error_code) == (400, "invalid_http")
        assert await connection.is_closed()
        await until(lambda: held_bytes(app) == 0)
