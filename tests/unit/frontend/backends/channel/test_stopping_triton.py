"""A Triton that is stopping delivers nothing more, and does not exit before its clients have closed their calls."""

from __future__ import annotations

import asyncio

from frontend.backends.grpc_channel import TritonChannel
from frontend.backends.triton import TritonGenerator
from llm_pipeline.protocol.errors import ErrorCode
from tests.support.app import until
from tests.support.channel_triton import Completion, channel_triton, last_chunk, parameters

IS_STOPPING = "[request id: lease] Server is stopping, scheduler for model has stopped accepting new inference requests"


async def test_channel_without_bursts_is_closed_when_triton_refuses_heartbeats_because_it_is_stopping() -> None:
    async with channel_triton() as triton:
        generator = TritonGenerator(TritonChannel(triton.address), "ensemble")
        completions = [Completion(generator, parameters(key)) for key in "ab"]
        await until(lambda: bool(triton.clients) and triton.client.slots.keys() >= {"a", "b"})
        triton.client.burst(("a", "x"))
        await until(lambda: completions[0].text == "x")
        triton.renewal_failure = IS_STOPPING
        errors = [await completion.failed() for completion in completions]
        assert [error.code for error in errors] == [ErrorCode.SERVICE_UNAVAILABLE] * 2
        assert [type(error).__name__ for error in errors] == ["PipelineError"] * 2, "they may not run again elsewhere"
        await until(lambda: triton.cancelled_calls == 1)
        await generator.close()


async def test_channel_with_bursts_stays_open_although_heartbeats_are_refused() -> None:
    async with channel_triton() as triton:
        generator = TritonGenerator(TritonChannel(triton.address), "ensemble")
        completion = Completion(generator, parameters("a"))
        await until(lambda: bool(triton.clients) and triton.client.slots.keys() >= {"a"})
        triton.renewal_failure = IS_STOPPING
        while len(triton.renewals) < 3:
            triton.client.burst(("a", "x"))
            await asyncio.sleep(0.05)  # far less than between two heartbeats
        triton.client.burst(("a", last_chunk()), ends=["a"])
        assert set(await completion.over()) == {"x"}
        assert triton.cancelled_calls == 0
        triton.end_channels()
        await generator.close()


async def test_other_failures_of_heartbeats_leave_the_channel_open() -> None:
    """Such as a shared memory that is full for a while."""
    async with channel_triton() as triton:
        generator = TritonGenerator(TritonChannel(triton.address), "ensemble")
        completion = Completion(generator, parameters("a"))
        await until(lambda: bool(triton.clients) and triton.client.slots.keys() >= {"a"})
        triton.renewal_failure = "Failed to increase the shared memory pool size"
        await until(lambda: len(triton.renewals) == 3)
        triton.client.burst(("a", last_chunk("x")), ends=["a"])
        assert await completion.over() == "x"
        triton.end_channels()
        await generator.close()
