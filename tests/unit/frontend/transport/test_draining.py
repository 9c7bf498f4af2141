"""A server that drains sends clients of kept connections to another server, and cuts nothing that is under way."""

from __future__ import annotations

import asyncio
import signal

from frontend.backends.fake import FakeGenerator, chunks
from tests.support.app import Running, real_server, until
from tests.support.raw_http import LIVE, completion_request, connect


def start_draining(app: Running) -> None:
    assert app.server is not None
    app.server.handle_exit(signal.SIGTERM, None)


async def test_connection_between_two_requests_is_closed() -> None:
    async with real_server(drain_timeout_s=5) as app, connect(app) as connection:
        connection.write(completion_request())
        assert (await connection.response()).status == 200
        start_draining(app)
        assert await connection.is_closed()


async def test_response_that_is_under_way_is_completed_and_then_its_connection_closed() -> None:
    go_on = asyncio.Event()
    generator = FakeGenerator(lambda _: [go_on, *chunks("a")])
    async with real_server(generator, drain_timeout_s=5) as app, connect(app) as connection:
        connection.write(completion_request())
        await until(lambda: app.dependencies.admission.in_flight == 1)
        start_draining(app)
        await until(lambda: app.dependencies.admission.is_draining)
        go_on.set()
        response = await connection.response()
        assert (response.status, response.headers["connection"]) == (200, "close")
        assert await connection.is_closed()


async def test_request_that_was_arriving_is_refused_with_a_delay_on_a_connection_that_closes() -> None:
    """Half of it was sent before the drain. A client that kept the connection would be refused again and again."""
    blocked = FakeGenerator(lambda _: [asyncio.Event()])
    request = completion_request()
    async with real_server(blocked, drain_timeout_s=5) as app, connect(app) as busy, connect(app) as late:
        late.write(LIVE)
        assert (await late.response()).status == 200
        busy.write(completion_request())
        await until(lambda: app.dependencies.admission.in_flight == 1)
        late.write(request[:40])
        await late.sent()
        await asyncio.sleep(0.05)  # no event reports that the server has read it
        start_draining(app)
        await until(lambda: app.dependencies.admission.is_draining)
        late.write(request[40:])
        response = await late.response()
        assert (response.status, response.error_code, response.headers["connection"]) == (503, "draining", "close")
        assert response.headers["retry-after"] == "3"
        assert await late.is_closed()
        busy.close()


async def test_new_connections_learn_that_the_server_is_not_ready_and_are_closed() -> None:
    blocked = FakeGenerator(lambda _: [asyncio.Event()])
    async with real_server(blocked, drain_timeout_s=5) as app, connect(app) as busy:
        busy.write(completion_request())
        await until(lambda: app.dependencies.admission.in_flight == 1)
        start_draining(app)
        async with connect(app) as probe:
            probe.write(LIVE.replace(b"live", b"ready"))
            response = await probe.response()
            assert (response.status, response.headers["connection"]) == (503, "close")
        busy.close()
