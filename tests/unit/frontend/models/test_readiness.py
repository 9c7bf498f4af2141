"""Readiness: a model is ready after a warm-up probe that returned text, while Triton can be reached."""

from __future__ import annotations

import asyncio

from structlog.testing import capture_logs

from frontend.backends.fake import FakeGenerator, forever
from frontend.backends.generator import OnChunk
from frontend.backends.warm_up import WarmUpTimeouts
from frontend.models.readiness import Readiness
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.protocol.messages import CompletionParameters, FinishReason, TextChunk
from tests.support.app import Running, in_process, until


async def is_ready(app: Running) -> bool:
    return (await app.client.get("/health/ready")).status_code == 200


async def is_not_ready(app: Running) -> bool:
    return not await is_ready(app)


async def test_model_that_is_down_at_the_start_becomes_ready() -> None:
    generator = FakeGenerator()
    generator.is_up = False
    async with in_process(generator) as app:
        response = await app.complete()
        assert response.status_code == 503
        assert response.json()["error"]["code"] == "engine_unavailable"
        assert response.headers["retry-after"]
        assert (await app.client.get("/health/live")).status_code == 200
        assert (await app.client.get("/openai/health/ready")).status_code == 503
        generator.is_up = True
        await until(lambda: is_ready(app))
        assert (await app.complete()).status_code == 200


async def test_warm_up_probe_without_text_is_not_ready() -> None:
    generator = FakeGenerator()
    generator.warm_up_text = ""
    generator.is_up = False
    async with in_process(generator) as app:
        generator.is_up = True
        assert await is_not_ready(app)
        generator.warm_up_text = "x"
        await until(lambda: is_ready(app))


async def test_readiness_follows_triton() -> None:
    async with in_process() as app:
        app.generator.is_up = False
        await until(lambda: is_not_ready(app))
        app.generator.is_up = True
        await until(lambda: is_ready(app))


async def test_engine_error_triggers_a_warm_up_probe() -> None:
    async with in_process(health_check_interval_s=60) as app:
        app.generator.warm_up_text = ""
        app.generator.script = lambda _: [PipelineError(ErrorCode.ENGINE_UNAVAILABLE, "gone")]
        assert (await app.complete()).status_code == 503
        await until(lambda: is_not_ready(app))


async def test_idle_engine_is_probed_again() -> None:
    async with in_process(idle_probe_interval_s=0.1) as app:
        app.generator.warm_up_text = ""
        await until(lambda: is_not_ready(app))


async def test_invalid_request_is_a_400_even_when_not_ready() -> None:
    generator = FakeGenerator()
    generator.is_up = False
    async with in_process(generator) as app:
        assert (await app.complete(max_tokens=0)).status_code == 400


async def test_chunks_without_a_token_postpone_the_idle_probe() -> None:
    """A prompt that is only scored (`max_tokens: 0` with `echo`) gets a chunk without a token."""
    scored = TextChunk("Hi", 0, prompt_tokens=5, finish_reason=FinishReason.LENGTH)
    async with in_process(FakeGenerator(lambda _: [scored]), idle_probe_interval_s=60) as app:
        (model,) = app.dependencies.models
        model.readiness.last_chunk_s = 0.0
        assert (await app.complete(max_tokens=0, echo=True)).status_code == 200
        assert model.readiness.last_chunk_s > 0


async def test_log_names_the_model() -> None:
    readiness = Readiness(FakeGenerator(), model="org/large", check_interval_s=60, idle_probe_interval_s=60)
    with capture_logs() as logs:
        watch = asyncio.create_task(readiness.watch())
        await until(lambda: readiness.is_ready)
        watch.cancel()
        await asyncio.wait({watch}, timeout=2)
    assert {"event": "ready", "model": "org/large", "log_level": "info"} in logs


async def test_watch_can_be_cancelled_when_a_probe_is_requested() -> None:
    """wait_for before Python 3.12 loses a cancellation that arrives at the same moment as its result."""
    readiness = Readiness(FakeGenerator(), check_interval_s=60, idle_probe_interval_s=60)
    watch = asyncio.create_task(readiness.watch())
    await until(lambda: readiness.is_ready)
    await asyncio.sleep(0)
    readiness.request_probe()
    watch.cancel()
    await asyncio.wait({watch}, timeout=2)
    assert watch.cancelled()


async def test_requests_of_an_unresponsive_triton_fail() -> None:
    """A Triton that hangs closes no connection: its requests would otherwise wait for their deadline."""
    async with in_process(FakeGenerator(forever()), triton_unresponsive_timeout_s=0.2) as app:
        request = asyncio.create_task(app.complete())
        await until(lambda: bool(app.generator.requests))
        app.generator.is_up = False
        response = await asyncio.wait_for(request, 5)
        assert response.status_code == 503
        assert response.json()["error"]["code"] == "service_unavailable"
        assert await app.metric('completions_cancelled_total{model="tiny",reason="triton_lost"}') == 1


async def test_engine_without_steps_is_not_ready_but_its_requests_go_on() -> None:
    """Whether they end is up to the engine's own watchdog: it may come back."""
    async with in_process(FakeGenerator(forever()), triton_unresponsive_timeout_s=0.2) as app:
        request = asyncio.create_task(app.complete(max_tokens=3))
        await until(lambda: bool(app.generator.requests))
        app.generator.is_progressing = False
        await until(lambda: is_not_ready(app))
        assert (await app.complete()).status_code == 503
        await asyncio.wait({request}, timeout=0.6)
        assert not request.done()
        app.generator.is_progressing = True
        await until(lambda: is_ready(app))
        await app.generator.cancel(app.generator.requests[0].request_key)
        await asyncio.wait_for(request, 5)


async def test_losing_triton_during_a_warm_up_probe_ends_readiness() -> None:
    class Hanging(FakeGenerator):
        async def generate(self, parameters: CompletionParameters, on_chunk: OnChunk) -> None:
            await asyncio.Event().wait()

    generator = Hanging()
    readiness = Readiness(
        generator,
        check_interval_s=60,
        idle_probe_interval_s=0,
        warm_up_timeouts=WarmUpTimeouts(timeout_s=1000, check_interval_s=0.02),
    )
    readiness.is_ready = True
    watch = asyncio.create_task(readiness.watch())
    await asyncio.sleep(0)
    generator.is_up = False
    await until(lambda: not readiness.is_ready)
    watch.cancel()
    await asyncio.wait({watch}, timeout=2)
