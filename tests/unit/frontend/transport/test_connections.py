"""Connections are bounded: those without a request give way, and probes are answered whatever the others do."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontend.backends.fake import FakeGenerator
from frontend.transport.connections import ConnectionLimits, ConnectionTable
from frontend.transport.descriptors import PROBE_CONNECTIONS
from tests.support.app import Running, real_server, until
from tests.support.raw_http import LIVE, RawConnection, completion_request, connect, post_head


@asynccontextmanager
async def many(app: Running, count: int) -> AsyncIterator[list[RawConnection]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(connect(app)) for _ in range(count)]


async def test_new_connections_take_the_place_of_the_oldest_without_a_request() -> None:
    async with real_server(max_connections=4) as app, many(app, 4 + PROBE_CONNECTIONS) as idle:
        async with connect(app) as connection:
            connection.write(LIVE)
            assert (await connection.response()).status == 200
            assert await idle[0].is_closed()
        idle[-1].write(LIVE)
        assert (await idle[-1].response()).status == 200


async def test_probe_is_answered_beside_connections_that_hold_everything() -> None:
    async with real_server(max_connections=50) as app, many(app, 500):
        async with connect(app) as connection:
            connection.write(LIVE)
            assert (await connection.response()).status == 200
        assert (await app.complete()).status_code == 200


async def test_beyond_busy_connections_only_probes_are_answered() -> None:
    blocked = FakeGenerator(lambda _: [asyncio.Event()])
    async with real_server(blocked, max_connections=2) as app, many(app, 2) as busy:
        for connection in busy:
            connection.write(completion_request())
        await until(lambda: app.dependencies.admission.in_flight == 2)
        async with connect(app) as probe, connect(app) as client:
            probe.write(LIVE)
            response = await probe.response()
            assert (response.status, response.headers["connection"]) == (200, "close")
            client.write(completion_request())
            response = await client.response()
            assert (response.status, response.error_code) == (503, "service_unavailable")
            assert int(response.headers["retry-after"]) >= 1
            assert await client.is_closed()


async def test_body_that_is_not_wanted_is_not_read_to_its_end() -> None:
    async with real_server() as app, connect(app) as connection:
        connection.write(post_head(length=4 * 2**20, key="wrong") + b"x" * 2**20)
        response = await connection.response()
        assert (response.status, response.error_code) == (401, "invalid_api_key")
        assert await connection.is_closed()
        await until(lambda: app.dependencies.body_budget.free == app.dependencies.settings.body_bytes_in_flight)


@pytest.mark.parametrize("then", [b"", LIVE], ids=["alone", "with-the-next-request"])
async def test_connection_goes_on_after_an_error_before_the_end_of_a_short_body(then: bytes) -> None:
    """Clients send head and body one after the other; an error that needs the head alone may overtake the body."""
    async with real_server(idle_timeout_s=1) as app, connect(app) as connection:
        for _ in range(3):
            connection.write(post_head(length=10, key="wrong"))
            assert (await connection.response()).status == 401
            connection.write(b"01234")
            await asyncio.sleep(0.05)
            connection.write(b"56789" + then)
            if then:
                assert (await connection.response()).status == 200
        assert await connection.is_closed()  # after its idle time


async def test_rest_of_a_short_body_that_never_comes_ends_its_connection() -> None:
    async with real_server(idle_timeout_s=60) as app, connect(app) as connection:
        connection.write(post_head(length=10, key="wrong") + b"01234")
        assert (await connection.response()).status == 401
        assert await connection.is_closed()


async def test_client_that_sends_its_whole_body_before_it_reads_gets_the_error() -> None:
    """Although the server answers after the head and closes: without lingering, the kernel would reset."""
    async with real_server() as app, connect(app) as connection:
        connection.write(post_head(length=4 * 2**20, key="wrong") + b"x" * 4 * 2**20)
        await connection.sent()
        assert (await connection.response()).status == 401


async def test_client_that_never_stops_sending_is_disconnected() -> None:
    async with real_server() as app, connect(app) as connection:
        connection.write(post_head(length=2**30, key="wrong"))
        assert (await connection.response()).status == 401
        connection.write(b"x" * 64 * 2**20)
        await until(lambda: app.server is not None and not app.server.server_state.connections, 10)


HOSTILE = (
    b"",
    b"G",
    b"\r\n",
    b"\x00",
    LIVE,
    LIVE * 3,
    LIVE[:-2],
    post_head(length=10, key="wrong"),
    post_head(length=10) + b"{",
    post_head(length=None) + b"5\r\nab",
    post_head(length=None) + b"zz\r\n",
    completion_request(),
    completion_request(stream=True) + b"\x00",
)


async def test_no_descriptor_is_left_after_a_thousand_hostile_connections() -> None:
    async with real_server() as app:
        assert (await app.complete()).status_code == 200
        before = len(os.listdir("/proc/self/fd"))
        host, port = app.client.base_url.host, app.client.base_url.port
        for batch in range(10):
            await asyncio.gather(*(_attack(host, port or 0, batch * 100 + number) for number in range(100)))
        await until(lambda: app.server is not None and len(app.server.server_state.connections) <= 1, 10)
        await until(lambda: len(list(Path("/proc/self/fd").iterdir())) <= before, 10)
        assert (await app.complete()).status_code == 200
        assert app.dependencies.body_budget.free == app.dependencies.settings.body_bytes_in_flight


async def _attack(host: str, port: int, number: int) -> None:
    loop = asyncio.get_running_loop()
    with socket.socket() as client:
        client.setblocking(False)
        await loop.sock_connect(client, (host, port))
        await loop.sock_sendall(client, HOSTILE[number % len(HOSTILE)])
        if number % 3 == 1:
            client.shutdown(socket.SHUT_WR)  # half-closed
            await asyncio.wait_for(_read_all(client), 10)
        elif number % 3 == 2:
            await asyncio.sleep(0.01)


async def _read_all(client: socket.socket) -> None:
    try:
        while await asyncio.get_running_loop().sock_recv(client, 65536):
            pass
    except ConnectionError:
        pass


class FakeConnection:
    """A connection of the table, without a socket."""

    def __init__(self) -> None:
        self.is_dropped = False

    def on_head_timeout(self) -> None:
        self.is_dropped = True

    def drop(self) -> None:
        self.is_dropped = True


@given(st.lists(st.tuples(st.sampled_from(["open", "request", "idle", "linger", "close"]), st.integers(0, 30))))
def test_places_never_exceed_the_limits(steps: list[tuple[str, int]]) -> None:
    """Whatever connections do, in any order: the limit and its reserve hold, and one without a request gives way."""

    async def run() -> None:
        table = ConnectionTable(ConnectionLimits(3, head_timeout_s=1))
        live: list[FakeConnection] = []
        for step, number in steps:
            if step == "open":
                live.append(FakeConnection())
                has_place = table.opens(live[-1])
                for dropped in [connection for connection in live if connection.is_dropped]:
                    live.remove(dropped)
                    table.closes(dropped)
                if not has_place:
                    assert table.is_full
                    table.closes(live.pop())
            elif live:
                connection = live[number % len(live)]
                if step == "request":
                    table.has_request(connection)
                elif step == "idle":
                    table.has_request(connection)
                    table.is_idle(connection)
                elif step == "linger":
                    table.lingers(connection)
                else:
                    live.remove(connection)
                    table.closes(connection)
            assert table.count == len(live) <= 3 + PROBE_CONNECTIONS

    asyncio.run(run())
