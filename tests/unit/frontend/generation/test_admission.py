"""How much is let in, and how the doors close."""

from __future__ import annotations

import asyncio

import pytest

from frontend.backends.fake import FakeGenerator, chunks, forever
from frontend.generation.admission import Admission
from llm_pipeline.protocol.errors import PipelineError
from llm_pipeline.runtime.retry_after import RetryAfterEstimator
from tests.support.app import MODEL, in_process, real_server, until


async def test_a_full_house_is_a_429() -> None:
    async with in_process(FakeGenerator(forever(after=0)), max_in_flight=3) as app:
        first = asyncio.create_task(app.complete(prompt=["a", "b"]))
        await until(lambda: len(app.generator.asked) == 2)
        answer = await app.complete(n=2)
        assert answer.status_code == 429
        assert answer.json()["error"]["type"] == "overloaded_error"
        assert answer.json()["error"]["code"] == "queue_full"
        assert 1 <= int(answer.headers["retry-after"]) <= 120
        assert int(answer.headers["retry-after-ms"]) >= 1000
        assert await app.metric("completions_in_flight_requests") == 2
        assert await app.metric("completions_queued_requests") == 2
        for asked in app.generator.asked:
            await app.generator.cancel(asked.request_key)
        await first
        await until(lambda: app.dependencies.admission.in_flight == 0)
        assert await app.metric("completions_queued_requests") == 0


async def test_a_place_is_taken_until_the_engine_is_done() -> None:
    """After a stop string the answer is out, but decode still has to hear of it."""
    confirmed = asyncio.Event()
    async with in_process(FakeGenerator(lambda _: [*chunks("a"), confirmed])) as app:
        answer = await app.complete(stream=True)
        assert answer.text.endswith("data: [DONE]\n\n")
        assert await app.metric("completions_in_flight_requests") == 1
        confirmed.set()
        await until(lambda: app.dependencies.admission.in_flight == 0)
        assert app.generator.stopped == []


async def test_the_wait_grows_with_what_is_missing_and_with_those_who_wait_already(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now_s = 100.0
    monkeypatch.setattr(
        "frontend.generation.concurrency.RetryAfterEstimator", lambda: RetryAfterEstimator(clock=lambda: now_s)
    )
    admission = Admission(4)
    admission.admit(4)
    for _ in range(4):  # one ends every 5 s
        now_s += 5.0
        admission.choice_ended(had_token=True)
        admission.admit(1)
    waits = []
    for choices in (1, 1, 3):
        with pytest.raises(PipelineError) as refusal:
            admission.admit(choices)
        waits.append(refusal.value.retry_after_s)
    assert waits == [5.0, 10.0, 25.0]


async def test_draining_refuses_and_readiness_says_so() -> None:
    async with in_process() as app:
        app.dependencies.admission.is_draining = True
        answer = await app.complete()
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "draining"
        assert answer.headers["retry-after"] == "1"
        assert (await app.client.get("/health/ready")).status_code == 503
        assert (await app.client.get("/health/live")).status_code == 200


async def test_draining_waits_for_running_requests() -> None:
    gate = asyncio.Event()
    async with in_process(FakeGenerator(lambda _: [gate, *chunks("a")]), drain_timeout_s=5) as app:
        request = asyncio.create_task(app.complete())
        await until(lambda: bool(app.generator.asked))
        drain = asyncio.create_task(app.dependencies.drain())
        await asyncio.sleep(0)
        assert not drain.done()
        gate.set()
        assert (await request).status_code == 200
        await asyncio.wait_for(drain, 2)


async def test_draining_stops_what_takes_too_long() -> None:
    async with in_process(FakeGenerator(forever()), drain_timeout_s=0.05) as app:
        request = asyncio.create_task(app.complete())
        await until(lambda: bool(app.generator.asked))
        await app.dependencies.drain()
        assert (await request).json()["error"]["code"] == "draining"
        await app.generator.until_stopped()


async def test_a_signal_drains_with_open_doors() -> None:
    gate = asyncio.Event()
    generator = FakeGenerator(lambda _: [gate, *chunks("a")])
    async with real_server(generator, drain_timeout_s=5) as app:
        server = app.server
        assert server is not None
        request = asyncio.create_task(app.client.post("/v1/completions", json={"model": MODEL, "prompt": "Hi"}))
        await until(lambda: bool(generator.asked))
        server.handle_exit(15, None)
        assert (await app.client.get("/health/ready")).status_code == 503
        assert (await app.complete()).status_code == 503
        assert not server.should_exit
        gate.set()
        assert (await request).status_code == 200
        await until(lambda: server.should_exit)
    assert generator.is_closed
