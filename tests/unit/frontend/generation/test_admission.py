"""Admission of requests: the limit of the server, and draining."""

from __future__ import annotations

import asyncio

from frontend.backends.fake import FakeGenerator, chunks, forever
from tests.support.app import MODEL, in_process, real_server, until


async def test_request_above_the_limit_is_a_429() -> None:
    async with in_process(FakeGenerator(forever(after=0)), max_in_flight=3) as app:
        first = asyncio.create_task(app.complete(prompt=["a", "b"]))
        await until(lambda: len(app.generator.requests) == 2)
        response = await app.complete(n=2)
        assert response.status_code == 429
        assert response.json()["error"]["type"] == "overloaded_error"
        assert response.json()["error"]["code"] == "queue_full"
        assert 1 <= int(response.headers["retry-after"]) <= 120
        assert int(response.headers["retry-after-ms"]) >= 1000
        assert await app.metric("completions_in_flight_requests") == 2
        assert await app.metric("completions_queued_requests") == 2
        for sent in app.generator.requests:
            await app.generator.cancel(sent.request_key)
        await first
        await until(lambda: app.dependencies.admission.in_flight == 0)
        assert await app.metric("completions_queued_requests") == 0


async def test_slot_is_held_until_the_engine_has_finished() -> None:
    """After a stop string the response is complete, but decode still has to learn of it."""
    confirmed = asyncio.Event()
    async with in_process(FakeGenerator(lambda _: [*chunks("a"), confirmed])) as app:
        response = await app.complete(stream=True)
        assert response.text.endswith("data: [DONE]\n\n")
        assert await app.metric("completions_in_flight_requests") == 1
        confirmed.set()
        await until(lambda: app.dependencies.admission.in_flight == 0)
        assert app.generator.cancelled == []


async def test_draining_rejects_requests_and_fails_the_readiness_probe() -> None:
    async with in_process() as app:
        app.dependencies.admission.is_draining = True
        response = await app.complete()
        assert response.status_code == 503
        assert response.json()["error"]["code"] == "draining"
        assert response.headers["retry-after"] == "3"
        assert (await app.client.get("/health/ready")).status_code == 503
        assert (await app.client.get("/health/live")).status_code == 200


async def test_draining_waits_for_running_requests() -> None:
    gate = asyncio.Event()
    async with in_process(FakeGenerator(lambda _: [gate, *chunks("a")]), drain_timeout_s=5) as app:
        request = asyncio.create_task(app.complete())
        await until(lambda: bool(app.generator.requests))
        drain = asyncio.create_task(app.dependencies.drain())
        await asyncio.sleep(0)
        assert not drain.done()
        gate.set()
        assert (await request).status_code == 200
        await asyncio.wait_for(drain, 2)


async def test_drain_timeout_cancels_running_requests() -> None:
    async with in_process(FakeGenerator(forever()), drain_timeout_s=0.05) as app:
        request = asyncio.create_task(app.complete())
        await until(lambda: bool(app.generator.requests))
        await app.dependencies.drain()
        assert (await request).json()["error"]["code"] == "draining"
        await app.generator.until_cancelled()


async def test_signal_drains_while_the_port_still_accepts_connections() -> None:
    gate = asyncio.Event()
    generator = FakeGenerator(lambda _: [gate, *chunks("a")])
    async with real_server(generator, drain_timeout_s=5) as app:
        server = app.server
        assert server is not None
        request = asyncio.create_task(app.client.post("/v1/completions", json={"model": MODEL, "prompt": "Hi"}))
        await until(lambda: bool(generator.requests))
        server.handle_exit(15, None)
        assert (await app.client.get("/health/ready")).status_code == 503
        assert (await app.complete()).status_code == 503
        assert not server.should_exit
        gate.set()
        assert (await request).status_code == 200
        await until(lambda: server.should_exit)
    assert generator.is_closed
