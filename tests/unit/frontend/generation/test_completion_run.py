"""A run: chunks reach the response in order, at once or when it wakes, and never fail the generator."""

from __future__ import annotations

import asyncio

from frontend.backends.fake import FakeGenerator, chunks
from frontend.backends.generator import OnChunk
from frontend.generation.completion_run import CancelReason, Choice, CompletionRun
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.protocol.messages import CompletionParameters, TextChunk


class HeldGenerator(FakeGenerator):
    """Hands its callback to the test, and ends the request when it is cancelled."""

    def __init__(self) -> None:
        super().__init__()
        self.on_chunk: OnChunk | None = None

    async def generate(self, parameters: CompletionParameters, on_chunk: OnChunk) -> None:
        self.on_chunk = on_chunk
        await self.until_cancelled()

    def push(self, *pushed: TextChunk) -> None:
        assert self.on_chunk is not None
        for chunk in pushed:
            self.on_chunk(chunk)


class Observer:
    """Raises for the chunk with the text `bad`."""

    def on_chunk(self, choice: Choice, chunk: TextChunk) -> None:
        if chunk.text == "bad":
            raise ValueError("a bug")

    def on_failure(self, error: PipelineError) -> None: ...
    def on_cancel(self, reason: CancelReason) -> None: ...
    def on_end(self, choice: Choice) -> None: ...


async def start() -> tuple[HeldGenerator, CompletionRun]:
    generator = HeldGenerator()
    parameters = CompletionParameters("key", "request", prompt_text="Hi", stream=True)
    run = CompletionRun([Choice(0, 0, parameters)], generator, Observer())
    run.start()
    await asyncio.sleep(0)
    return generator, run


async def end(generator: HeldGenerator, run: CompletionRun) -> None:
    await generator.cancel("key")
    for choice in run.choices:
        assert choice.stream_task is not None
        await asyncio.wait({choice.stream_task}, timeout=5)


async def test_waiting_response_takes_chunks_as_they_arrive() -> None:
    generator, run = await start()
    taken: list[str] = []

    def take(_: Choice, chunk: TextChunk) -> bool:
        taken.append(chunk.text)
        return True

    waiting = asyncio.create_task(run.changed(take))
    await asyncio.sleep(0)
    generator.push(*chunks("a", "b", "c")[:2])
    assert taken == ["a", "b"]
    assert run.untaken_chunks == 0
    await asyncio.sleep(0)
    assert not waiting.done()
    run.wake()
    await asyncio.wait_for(waiting, 5)
    await end(generator, run)


async def test_chunk_that_is_left_wakes_the_response_and_keeps_its_place() -> None:
    generator, run = await start()
    taken: list[str] = []

    def take(_: Choice, chunk: TextChunk) -> bool:
        if chunk.text == "b":
            return False
        taken.append(chunk.text)
        return True

    waiting = asyncio.create_task(run.changed(take))
    await asyncio.sleep(0)
    generator.push(*chunks("a", "b", "c", "d")[:3])
    assert taken == ["a"]
    await asyncio.wait_for(waiting, 5)
    assert [chunk.text for _, chunk in run.take()] == ["b", "c"]
    await end(generator, run)


async def test_callback_that_cannot_handle_a_chunk_fails_its_own_request_only() -> None:
    """A generator delivers chunks of many requests in one step: an exception would cost the others theirs."""
    generator, run = await start()
    generator.push(TextChunk("bad", 1))
    assert run.failure is not None
    assert run.failure.code is ErrorCode.INTERNAL_ERROR
    await asyncio.wait_for(generator.until_cancelled(), 5)
    await end(generator, run)
