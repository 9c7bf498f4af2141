"""The warm-up probe: passes with text, reports why it failed, and leaves no request running."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from frontend.backends.cancellation import CancelTimeouts
from frontend.backends.fake import FakeGenerator
from frontend.backends.generator import OnChunk
from frontend.backends.warm_up import WarmUpOutcome, WarmUpProbe, WarmUpTimeouts
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.protocol.messages import CompletionParameters, FinishReason, TextChunk
from tests.support.app import until

LENGTH = FinishReason.LENGTH


class Scripted(FakeGenerator):
    """Completes a warm-up prompt with `chunks` and then raises `error`, if any."""

    def __init__(self, *chunks: TextChunk, error: Exception | None = None) -> None:
        super().__init__()
        self.chunks = chunks
        self.error = error

    async def generate(self, parameters: CompletionParameters, on_chunk: OnChunk) -> None:
        for chunk in self.chunks:
            on_chunk(chunk)
        if self.error is not None:
            raise self.error


class Hanging(FakeGenerator):
    """Sends `chunks` and then nothing until the request is cancelled."""

    def __init__(self, *chunks: TextChunk) -> None:
        super().__init__()
        self.chunks = chunks
        self.ended = asyncio.Event()
        self.release = asyncio.Event()

    async def generate(self, parameters: CompletionParameters, on_chunk: OnChunk) -> None:
        try:
            for chunk in self.chunks:
                on_chunk(chunk)
            await self.release.wait()
        finally:
            self.ended.set()

    async def cancel(self, key: str) -> None:
        await super().cancel(key)
        self.release.set()


async def alive() -> bool:
    return True


async def lost() -> bool:
    return False


async def test_text_passes() -> None:
    result = await WarmUpProbe(FakeGenerator()).run(alive)
    assert result.is_passed


@pytest.mark.parametrize(
    ("generator", "reason"),
    [
        (Scripted(TextChunk("", 1, finish_reason=LENGTH)), "empty text"),
        (Scripted(TextChunk(" Paris", 1)), "service_unavailable"),
        (Scripted(TextChunk(" Paris", 1, finish_reason=FinishReason.CANCELLED)), "service_unavailable"),
        (Scripted(error=PipelineError(ErrorCode.ENGINE_UNAVAILABLE, "gone")), "engine_unavailable"),
        (Scripted(error=ValueError("a bug")), "internal_error"),
    ],
    ids=["no text", "no finish reason", "cancelled", "pipeline error", "exception"],
)
async def test_failure_has_a_reason(generator: FakeGenerator, reason: str) -> None:
    result = await WarmUpProbe(generator).run(alive)
    assert (result.outcome, result.reason) == (WarmUpOutcome.FAILED, reason)


async def test_error_after_the_finish_reason_does_not_count() -> None:
    finished = TextChunk(" Paris", 1, finish_reason=LENGTH)
    result = await WarmUpProbe(Scripted(finished, error=PipelineError(ErrorCode.INTERNAL_ERROR, "late"))).run(alive)
    assert result.is_passed


@pytest.mark.parametrize(
    ("is_alive", "timeout_s", "outcome"),
    [(alive, 0.02, WarmUpOutcome.TIMED_OUT), (lost, 60.0, WarmUpOutcome.ENDPOINT_LOST)],
    ids=["timeout", "endpoint lost"],
)
async def test_probe_that_does_not_end_is_cancelled(
    is_alive: Callable[[], Awaitable[bool]], timeout_s: float, outcome: WarmUpOutcome
) -> None:
    generator = Hanging()
    timeouts = WarmUpTimeouts(timeout_s=timeout_s, check_interval_s=0.01)
    result = await WarmUpProbe(generator, timeouts).run(is_alive)
    assert result.outcome is outcome
    await generator.until_cancelled()
    await asyncio.wait_for(generator.ended.wait(), 5)
    assert len(generator.cancelled) == 1


async def test_stream_that_does_not_end_after_its_finish_reason_is_abandoned() -> None:
    generator = Hanging(TextChunk(" Paris", 1, finish_reason=LENGTH))
    timeouts = WarmUpTimeouts(cancel=CancelTimeouts(confirm_s=0.02), check_interval_s=0.01)
    result = await WarmUpProbe(generator, timeouts).run(alive)
    assert result.is_passed
    assert generator.ended.is_set()
    assert generator.cancelled == []


async def test_request_continues_when_the_probe_is_cancelled() -> None:
    """Cancelling the call to Triton is a last resort."""
    generator = Hanging()
    probe = asyncio.create_task(WarmUpProbe(generator).run(alive))
    await asyncio.sleep(0)
    probe.cancel()
    await until(probe.cancelled)
    assert not generator.ended.is_set()
