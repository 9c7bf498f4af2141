"""Ready means that the model has answered with text, and still can."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from structlog.testing import capture_logs

from frontend.backends.fake import FakeGenerator, forever
from frontend.models.readiness import Readiness
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.protocol.messages import CompletionParameters, FinishReason, TextChunk
from tests.support.app import Running, in_process, until


async def is_ready(app: Running) -> bool:
    return (await app.client.get("/health/ready")).status_code == 200


async def is_not_ready(app: Running) -> bool:
    return not await is_ready(app)


async def test_down_at_the_start_and_up_later() -> None:
    generator = FakeGenerator()
    generator.is_up = False
    async with in_process(generator) as app:
        answer = await app.complete()
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "engine_unavailable"
        assert answer.headers["retry-after"]
        assert (await app.client.get("/health/live")).status_code == 200
        assert (await app.client.get("/openai/health/ready")).status_code == 503
        generator.is_up = True
        await until(lambda: is_ready(app))
        assert (await app.complete()).status_code == 200


async def test_an_empty_warm_up_is_not_ready() -> None:
    generator = FakeGenerator()
    generator.warm_up_text = ""
    generator.is_up = False
    async with in_process(generator) as app:
        generator.is_up = True
        assert await is_not_ready(app)
        generator.warm_up_text = "x"
        await until(lambda: is_ready(app))


async def test_triton_goes_away_and_comes_back() -> None:
    async with in_process() as app:
        app.generator.is_up = False
        await until(lambda: is_not_ready(app))
        app.generator.is_up = True
        await until(lambda: is_ready(app))


async def test_an_engine_error_is_a_reason_to_look() -> None:
    async with in_process(health_check_interval_s=60) as app:
        app.generator.warm_up_text = ""
        app.generator.script = lambda _: [PipelineError(ErrorCode.ENGINE_UNAVAILABLE, "gone")]
        assert (await app.complete()).status_code == 503
        await until(lambda: is_not_ready(app))


async def test_an_idle_engine_is_tried_again() -> None:
    async with in_process(idle_probe_interval_s=0.1) as app:
        app.generator.warm_up_text = ""
        await until(lambda: is_not_ready(app))


async def test_a_bad_request_is_refused_even_when_not_ready() -> None:
    generator = FakeGenerator()
    generator.is_up = False
    async with in_process(generator) as app:
        assert (await app.complete(max_tokens=0)).status_code == 400


async def test_answers_without_a_token_are_a_proof_of_life() -> None:
    """A prompt that is only scored (`max_tokens: 0` with `echo`) gets an answer, and no token."""
    scored = TextChunk("Hi", 0, prompt_tokens=5, finish_reason=FinishReason.LENGTH)
    async with in_process(FakeGenerator(lambda _: [scored]), idle_probe_interval_s=60) as app:
        (model,) = app.dependencies.models
        model.readiness.last_chunk_s = 0.0
        assert (await app.complete(max_tokens=0, echo=True)).status_code == 200
        assert model.readiness.last_chunk_s > 0


async def test_the_log_names_the_model() -> None:
    readiness = Readiness(FakeGenerator(), model="org/large", check_s=60, idle_s=60)
    with capture_logs() as logs:
        watch = asyncio.create_task(readiness.watch())
        await until(lambda: readiness.is_ready)
        watch.cancel()
        await asyncio.wait({watch}, timeout=2)
    assert {"event": "ready", "model": "org/large", "log_level": "info"} in logs


async def test_the_watch_can_be_cancelled_in_the_moment_of_a_doubt() -> None:
    """wait_for before Python 3.12 loses a cancellation that comes together with its result."""
    readiness = Readiness(FakeGenerator(), check_s=60, idle_s=60)
    watch = asyncio.create_task(readiness.watch())
    await until(lambda: readiness.is_ready)
    await asyncio.sleep(0)
    readiness.doubt()
    watch.cancel()
    await asyncio.wait({watch}, timeout=2)
    assert watch.cancelled()


async def test_what_waits_for_a_triton_that_is_gone_ends() -> None:
    """A Triton that hangs closes no connection: without this, its requests would wait for their deadline."""
    async with in_process(FakeGenerator(forever()), triton_unresponsive_timeout_s=0.2) as app:
        request = asyncio.create_task(app.complete())
        await until(lambda: bool(app.generator.asked))
        app.generator.is_up = False
        answer = await asyncio.wait_for(request, 5)
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "service_unavailable"
        assert await app.metric('completions_cancelled_total{model="tiny",reason="triton_lost"}') == 1


async def test_a_triton_that_goes_away_during_a_warm_up_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("frontend.models.readiness._LOOK_DURING_WARM_UP_S", 0.02)
    monkeypatch.setattr("frontend.models.readiness._WARM_UP_TIMEOUT_S", 1000.0)

    class Hanging(FakeGenerator):
        async def generate(self, parameters: CompletionParameters) -> AsyncIterator[TextChunk]:
            await asyncio.Event().wait()
            yield TextChunk("", 0)

    generator = Hanging()
    readiness = Readiness(generator, check_s=60, idle_s=0)
    readiness.is_ready = True
    watch = asyncio.create_task(readiness.watch())
    await asyncio.sleep(0)
    generator.is_up = False
    await until(lambda: not readiness.is_ready)
    watch.cancel()
    await asyncio.wait({watch}, timeout=2)
