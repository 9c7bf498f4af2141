"""The succession of a channel's calls: opened when needed, ended by decode, replaced when old."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from structlog.testing import capture_logs

from frontend.backends.channel.client import ChannelClient
from frontend.backends.channel.session import Endpoint
from frontend.backends.grpc_channel import TritonChannel
from llm_pipeline.protocol.channel import BundleItem
from llm_pipeline.protocol.errors import ErrorCode
from tests.support.app import until
from tests.support.channel_triton import ChannelTriton, ClientSide, Completion, channel_triton, last_chunk, parameters


async def send_nothing(*message: Any) -> None:
    pass


@asynccontextmanager
async def connected(
    max_age_s: float = 60.0, answer_timeout_s: float = 5.0
) -> AsyncIterator[tuple[ChannelTriton, ChannelClient]]:
    async with channel_triton() as triton:
        connection = TritonChannel(triton.address)
        endpoint = Endpoint(connection, "ensemble", send_nothing, send_nothing)
        client = ChannelClient(endpoint, max_age_s=max_age_s, answer_timeout_s=answer_timeout_s)
        try:
            yield triton, client
        finally:
            triton.end_channels()
            await client.close()
            await connection.close()


def end_at_once(client: ClientSide, items: list[BundleItem]) -> None:
    keys = [item.parameters.request_key for item in items]
    client.burst(*((key, last_chunk(key)) for key in keys), ends=keys)


async def registered(triton: ChannelTriton, key: str) -> ClientSide:
    await until(lambda: bool(triton.clients) and triton.client.has_channel and key in triton.client.slots)
    return triton.client


async def test_channel_that_ended_while_unused_is_opened_again_for_the_next_request() -> None:
    async with connected() as (triton, client):
        triton.on_bundle = end_at_once
        for number in range(3):
            assert await Completion(client, parameters(f"key-{number}")).over() == f"key-{number}"
            finished = triton.finished
            triton.client.end_channel()
            await until(lambda finished=finished: triton.finished > finished)  # type: ignore[misc]
        assert triton.client.opened == 3


@pytest.mark.parametrize("is_forgotten", [True, False], ids=["serials start over", "serials go on"])
async def test_channel_that_ends_with_live_requests_is_opened_again_at_once(is_forgotten: bool) -> None:
    """decode may end a channel while a bundle is on its way. It then may have forgotten the client, and its serials."""
    async with connected() as (triton, client):
        completion = Completion(client, parameters("a"))
        decode = await registered(triton, "a")
        decode.burst(("a", "1"))
        await until(lambda: completion.text == "1")
        decode.end_channel()
        if is_forgotten:
            decode.serial = 0
        decode.burst(("a", "2"))  # waits for a channel
        await until(lambda: completion.text == "12")
        decode.burst(("a", last_chunk("3")), ends=["a"])
        assert await completion.over() == "123"
        assert (decode.opened, len(triton.clients)) == (2, 1)


async def test_calls_that_end_without_a_burst_are_not_repeated_in_a_busy_loop() -> None:
    async with connected() as (triton, client):
        completion = Completion(client, parameters("a"))
        decode = await registered(triton, "a")
        loop = asyncio.get_running_loop()
        end_s = loop.time() + 0.3
        while loop.time() < end_s:
            decode.end_channel()
            await asyncio.sleep(0)
        assert decode.opened <= 6
        decode.burst(("a", last_chunk("x")), ends=["a"])
        assert await completion.over() == "x"


async def test_old_channel_is_replaced_without_losing_or_doubling_a_chunk() -> None:
    async with connected(max_age_s=0.0) as (triton, client):
        completion = Completion(client, parameters("a"))
        decode = await registered(triton, "a")
        for number in range(100):
            decode.burst(("a", f"{number} "))
            decode.burst(("a", f"{number}! "))
            await asyncio.sleep(0.001)
        decode.burst(("a", last_chunk()), ends=["a"])
        assert await completion.over() == "".join(f"{number} {number}! " for number in range(100))
        assert decode.opened > 5
        assert len(triton.clients) == 1


async def test_successor_is_read_after_the_end_of_its_predecessor() -> None:
    async with connected(max_age_s=0.0) as (triton, client):
        completion = Completion(client, parameters("a"))
        decode = await registered(triton, "a")
        old = decode.keep_channel()  # decode ends it late
        decode.burst(("a", "1"))
        await until(lambda: decode.opened == 2)
        decode.serial = 2
        decode.burst(("a", "3"))  # over the successor
        old.put_nowait(decode.json_of(1, ("a", "2")))
        await until(lambda: completion.text == "12")
        old.put_nowait(None)
        await until(lambda: completion.text == "123")
        decode.burst(("a", last_chunk()), ends=["a"])
        await completion.over()


async def test_young_channel_is_not_replaced() -> None:
    async with connected() as (triton, client):
        completion = Completion(client, parameters("a"))
        decode = await registered(triton, "a")
        for number in range(50):
            decode.burst(("a", str(number)))
        decode.burst(ends=["a"])
        await completion.over()
        assert decode.opened == 1


async def test_refused_successor_changes_nothing_and_is_tried_again_later() -> None:
    async with connected(max_age_s=0.5) as (triton, client):
        loop = asyncio.get_running_loop()
        begun_s, count = loop.time(), 0
        completion = Completion(client, parameters("a"))
        decode = await registered(triton, "a")
        triton.channel_failure = "Server is stopping, x"
        with capture_logs() as logs:
            while triton.refused_channels < 3:
                decode.burst(("a", "x"))
                count += 1
                await asyncio.sleep(0.002)
                assert loop.time() - begun_s < 10
        assert loop.time() - begun_s >= 0.5 + 2 * 0.05
        assert "channel_not_replaced" in {line["event"] for line in logs}
        triton.channel_failure = None
        while decode.opened == 1:
            decode.burst(("a", "x"))
            count += 1
            await asyncio.sleep(0.002)
        decode.burst(("a", last_chunk("z")), ends=["a"])
        assert await completion.over() == "x" * count + "z"
        assert (len(triton.clients), triton.cancelled_calls) == (1, 0)


async def test_missing_burst_fails_the_requests_and_reads_all_calls_to_their_end() -> None:
    async with connected(max_age_s=0.0) as (triton, client):
        completion = Completion(client, parameters("a"))
        decode = await registered(triton, "a")
        old = decode.keep_channel()
        decode.burst(("a", "1"))
        await until(lambda: decode.opened == 2)
        decode.serial += 1
        decode.burst(("a", "3"))
        old.put_nowait(None)
        error = await completion.failed()
        assert (error.code, completion.text) == (ErrorCode.SERVICE_UNAVAILABLE, "1")
        finished = triton.finished
        decode.end_channel()
        await until(lambda: triton.finished == finished + 1)
        assert triton.cancelled_calls == 0


async def test_100_000_chunks_of_64_requests_arrive_once_and_in_order_over_many_channels() -> None:
    bursts = 100_000 // 64
    async with connected(max_age_s=0.002) as (triton, client):
        completions = [Completion(client, parameters(f"key-{number}")) for number in range(64)]
        keys = [completion.key for completion in completions]
        decode = await registered(triton, keys[-1])
        for number in range(bursts):
            # Now and then a channel becomes older than its limit, however slow or fast the machine is.
            await asyncio.sleep(0.003 if number % 50 == 49 else 0)
            decode.burst(*((key, f"{number} ") for key in keys), ends=keys if number == bursts - 1 else ())
        for completion in completions:
            await completion.over(30)
            assert completion.texts == [f"{number} " for number in range(bursts)]
        assert decode.opened > 5


async def test_bundles_that_are_never_answered_hold_back_the_next_ones_for_a_limited_time() -> None:
    async with connected(answer_timeout_s=0.2) as (triton, client):
        triton.bundles_may_end.clear()
        completions = []
        for number in range(3):
            completions.append(Completion(client, parameters(f"key-{number}")))
            await asyncio.sleep(0.01)
        assert len(triton.bundles) == 2
        await until(lambda: len(triton.bundles) == 3)
        triton.client.burst(ends=[completion.key for completion in completions])
        for completion in completions:
            await completion.over()
