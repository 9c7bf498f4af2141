"""What HTTP allows beside the everyday request: upgrades, HTTP/1.0, interim responses, other targets, half-closing."""

from __future__ import annotations

import asyncio
import json

import pytest
import uvloop

from frontend.backends.fake import FakeGenerator, chunks
from tests.support.app import KEY, real_server, until
from tests.support.raw_http import LIVE, body_of, completion_request, connect, post_head

# As the JDK's HttpClient (17.0.15) sends it to a server without TLS.
JDK_UPGRADE = (
    b"Connection: Upgrade, HTTP2-Settings\r\n"
    b"HTTP2-Settings: AAEAAEAAAAIAAAAAAAMAAAAAAAQBAAAAAAUAAEAAAAYABgAA\r\n"
    b"Upgrade: h2c\r\n"
    b"User-Agent: Java-http-client/17.0.15\r\n"
)
STREAM = {"stream": True, "max_tokens": 3}


def upgrade_request(**fields: object) -> bytes:
    body = body_of(**fields)
    return post_head(length=len(body), headers=JDK_UPGRADE) + body


def chunked_upgrade_request() -> bytes:
    body = body_of()
    return post_head(length=None, headers=JDK_UPGRADE) + b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)


def parts_of(request: bytes) -> dict[str, list[bytes]]:
    head_end = request.index(b"\r\n\r\n") + 4
    return {
        "at-once": [request],
        "head-then-body": [request[:head_end], request[head_end:]],
        "cut-in-head": [request[: head_end // 2], request[head_end // 2 :]],
        "cut-in-body": [request[: head_end + 5], request[head_end + 5 :]],
        "byte-by-byte": [bytes([byte]) for byte in request],
    }


@pytest.mark.parametrize("split", parts_of(upgrade_request()))
@pytest.mark.parametrize("request_bytes", [upgrade_request(), chunked_upgrade_request()], ids=["length", "chunked"])
async def test_upgrade_to_http2_is_ignored_and_its_body_read(request_bytes: bytes, split: str) -> None:
    async with real_server() as app, connect(app) as connection:
        for part in parts_of(request_bytes)[split]:
            connection.write(part)
            await connection.sent()
            await asyncio.sleep(0)
        response = await connection.response()
        assert response.status == 200, response.body
        assert b'"choices"' in response.body
        connection.write(completion_request())
        assert (await connection.response()).status == 200


@pytest.mark.parametrize(
    "upgrade",
    [b"Connection: Upgrade\r\nUpgrade: websocket\r\n", b"Connection: keep-alive, upgrade\r\nUpgrade: TLS/1.3\r\n"],
    ids=["websocket", "tls"],
)
async def test_no_other_upgrade_changes_a_request(upgrade: bytes) -> None:
    body = body_of()
    async with real_server() as app, connect(app) as connection:
        connection.write(post_head(length=len(body), headers=upgrade) + body)
        assert (await connection.response()).status == 200


async def test_upgrade_of_a_request_without_a_body_is_ignored() -> None:
    get = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n" + JDK_UPGRADE + b"\r\n"
    empty = post_head(length=0, headers=JDK_UPGRADE)
    async with real_server() as app, connect(app) as connection:
        connection.write(get + LIVE + get)
        assert [(await connection.response()).status for _ in range(3)] == [200] * 3
        connection.write(empty)
        response = await connection.response()
        assert (response.status, response.error_code) == (400, "invalid_json")


async def test_pipelined_upgrades_are_answered_in_order() -> None:
    requests = [upgrade_request(max_tokens=1), completion_request(max_tokens=2), upgrade_request(max_tokens=3)]
    async with real_server() as app, connect(app) as connection:
        connection.write(b"".join(requests))
        responses = [await connection.response() for _ in requests]
        usages = [json.loads(response.body)["usage"]["completion_tokens"] for response in responses]
        assert usages == [1, 2, 3]


async def test_invalid_framing_with_an_upgrade_is_refused() -> None:
    async with real_server() as app, connect(app) as connection:
        connection.write(post_head(length=None, headers=JDK_UPGRADE) + b"zz\r\n")
        response = await connection.response()
        assert (response.status, response.error_code) == (400, "invalid_http")
        assert await connection.is_closed()


async def test_http2_without_an_upgrade_is_refused_with_the_reason() -> None:
    async with real_server() as app, connect(app) as connection:
        connection.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        response = await connection.response()
        assert (response.status, response.error_code) == (400, "invalid_http")
        assert b"HTTP/1.1" in response.body
        assert await connection.is_closed()


# --- HTTP/1.0 ---


async def test_http_1_0_stream_has_no_chunks_and_ends_with_the_connection() -> None:
    request = completion_request(**STREAM).replace(b"HTTP/1.1", b"HTTP/1.0")
    async with real_server() as app, connect(app) as connection:
        connection.write(request)
        head, _, body = (await connection.until_closed()).partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head.lower()
    assert b"connection: close" in head.lower()
    events = body.decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert all(event.startswith("data: ") for event in events[:-1])


async def test_http_1_0_response_has_its_length_and_no_interim_response() -> None:
    body = body_of()
    head = post_head(length=len(body), headers=b"Expect: 100-continue\r\n").replace(b"HTTP/1.1", b"HTTP/1.0")
    async with real_server() as app, connect(app) as connection:
        connection.write(head + body)
        response = await connection.response()
        assert response.status == 200
        assert json.loads(response.body)["usage"]["completion_tokens"] == 2
        assert await connection.is_closed()


async def test_http_1_0_head_request_has_no_body() -> None:
    async with real_server() as app, connect(app) as connection:
        connection.write(b"HEAD /health/live HTTP/1.0\r\n\r\n")
        head, _, body = (await connection.until_closed()).partition(b"\r\n\r\n")
    assert (head.split()[1], body) == (b"200", b"")


# --- Expect ---


async def test_expectation_is_met_before_the_body_is_sent() -> None:
    body = body_of()
    async with real_server() as app, connect(app) as connection:
        connection.write(post_head(length=len(body), headers=b"Expect: 100-continue\r\n"))
        assert await connection.line() == b"HTTP/1.1 100 Continue\r\n"
        assert await connection.line() == b"\r\n"
        connection.write(body)
        assert (await connection.response()).status == 200


async def test_expectation_of_a_request_that_is_refused_gets_the_refusal() -> None:
    async with real_server() as app, connect(app) as connection:
        connection.write(post_head(length=10, key="wrong", headers=b"Expect: 100-continue\r\n"))
        assert (await connection.response()).status == 401


# --- Targets ---


@pytest.mark.parametrize(
    ("target", "status"),
    [
        (b"http://localhost/health/live", 200),
        (b"http://localhost:1234/health/live?a=b", 200),
        (b"http://localhost", 200),
        (b"http://[::1]:9000/v1/models", 200),
        (b"http://localhost/nothing", 404),
        (b"localhost:443", 400),
    ],
)
async def test_absolute_target_is_served_by_its_path(target: bytes, status: int) -> None:
    async with real_server() as app, connect(app) as connection:
        key = b"Authorization: Bearer " + KEY.encode()
        connection.write(b"GET %s HTTP/1.1\r\nHost: localhost\r\n%s\r\n\r\n" % (target, key))
        assert (await connection.response()).status == status


async def test_host_of_an_absolute_target_replaces_the_host_header() -> None:
    async with real_server() as app, connect(app) as connection:
        connection.write(b"GET http://attacker.example/ HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert (await connection.response()).error_code == "host_not_allowed"
        connection.write(b"GET http://localhost:9/openai/schemas/Error.json HTTP/1.1\r\nHost: attacker.example\r\n\r\n")
        assert json.loads((await connection.response()).body)["$id"].startswith("http://localhost:9/")


# --- Half-closed connections ---


INTERIM = b"HTTP/1.1 100 Continue\r\n\r\n"


def held(event: asyncio.Event) -> FakeGenerator:
    """Generates two tokens once the event is set."""
    return FakeGenerator(lambda _: [event, *chunks(" a", " b")])


@pytest.mark.parametrize("fields", [{}, {"stream": True}], ids=["json", "stream"])
async def test_client_that_half_closes_after_its_request_gets_its_response(fields: dict[str, object]) -> None:
    event = asyncio.Event()
    async with real_server(held(event)) as app, connect(app) as connection:
        connection.write(completion_request(**fields))
        await until(lambda: bool(app.generator.running))
        connection.half_close()
        for _ in range(3):  # the server has noticed, and a client that is gone would be noticed
            assert await connection.line() + await connection.line() == INTERIM
        event.set()
        received = (await connection.until_closed()).replace(INTERIM, b"")
    assert received.startswith(b"HTTP/1.1 200 ")
    assert b"connection: close" in received
    assert b'"choices"' in received
    assert app.generator.cancelled == []


async def test_pipelined_requests_before_a_half_close_are_all_answered() -> None:
    async with real_server() as app, connect(app) as connection:
        connection.write(completion_request() + LIVE + completion_request())
        connection.half_close()
        received = await connection.until_closed()
    assert received.count(b"HTTP/1.1 200 ") == 3


@pytest.mark.parametrize("fields", [{}, {"stream": True}], ids=["json", "stream"])
@pytest.mark.parametrize("version", [b"HTTP/1.1", b"HTTP/1.0"])
async def test_client_that_closes_before_its_response_is_noticed(version: bytes, fields: dict[str, object]) -> None:
    async with real_server(held(asyncio.Event())) as app, connect(app) as connection:
        connection.write(completion_request(**fields).replace(b"HTTP/1.1", version))
        await until(lambda: bool(app.generator.running))
        connection.finish()
        await app.generator.until_cancelled()
        await until(lambda: app.dependencies.admission.in_flight == 0)


def test_uvloop_tells_half_closed_clients_from_closed_ones() -> None:
    """The event loop of production, whose transports are not asyncio's."""

    async def close(*, half: bool) -> tuple[bytes, list[str]]:
        event = asyncio.Event()
        async with real_server(held(event)) as app, connect(app) as connection:
            connection.write(completion_request())
            await until(lambda: bool(app.generator.running))
            if not half:
                connection.finish()
                await app.generator.until_cancelled()
                return b"", app.generator.cancelled
            connection.half_close()
            for _ in range(3):
                assert await connection.line() + await connection.line() == INTERIM
            event.set()
            return (await connection.until_closed()).replace(INTERIM, b""), app.generator.cancelled

    received, cancelled = uvloop.run(close(half=True))
    assert (received[:13], cancelled) == (b"HTTP/1.1 200 ", [])
    assert len(uvloop.run(close(half=False))[1]) == 1


async def test_incomplete_request_before_a_half_close_is_dropped() -> None:
    async with real_server() as app, connect(app) as connection:
        connection.write(post_head(length=100) + b"{")
        connection.half_close()
        assert await connection.is_closed()
        await until(lambda: app.dependencies.admission.in_flight == 0)


# --- Bodies ---


async def test_byte_order_mark_before_the_json_is_ignored() -> None:
    """PowerShell writes one; RFC 8259, section 8.1, lets a parser ignore it."""
    for body in (b"\xef\xbb\xbf" + body_of(), b"\xef\xbb\xbf" + body_of(prompt="a" * 40_000)):
        async with real_server() as app, connect(app) as connection:
            connection.write(post_head(length=len(body)) + body)
            assert (await connection.response()).status == 200
