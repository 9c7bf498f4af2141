"""Requests over a channel: bundles, chunks, ends and failures, with a real gRPC server that plays decode."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest
from structlog.testing import capture_logs

from frontend.backends.channel.client import MAX_BUNDLE_BYTES, MAX_BUNDLES_UNDER_WAY
from frontend.backends.generator import NoRoomError, UnreachableError
from frontend.backends.grpc_channel import TritonChannel
from frontend.backends.triton import TritonGenerator
from llm_pipeline.protocol.channel import MAX_BUNDLE_REQUESTS, BundleItem, TextBurst
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.protocol.messages import FinishReason, TextChunk
from tests.support.app import until
from tests.support.channel_triton import (
    ChannelTriton,
    ClientSide,
    Completion,
    Failure,
    channel_triton,
    last_chunk,
    parameters,
)


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[ChannelTriton, TritonGenerator]]:
    async with channel_triton() as triton:
        generator = TritonGenerator(TritonChannel(triton.address), "ensemble")
        try:
            yield triton, generator
        finally:
            triton.end_channels()
            await generator.close()


def end_at_once(client: ClientSide, items: list[BundleItem]) -> None:
    """Answers each request of a bundle with its key, in one burst."""
    keys = [item.parameters.request_key for item in items]
    client.burst(*((key, last_chunk(key)) for key in keys), ends=keys)


async def registered(triton: ChannelTriton, *keys: str) -> None:
    """Waits until decode has confirmed the bundles of these requests, and the channel is open."""
    await until(lambda: bool(triton.clients) and triton.client.has_channel and triton.client.slots.keys() >= set(keys))
    await until(lambda: triton.answered_bundles == len(triton.bundles))


async def test_chunks_arrive_unchanged_and_in_order() -> None:
    sent = [
        TextChunk(" é", 1, prompt_tokens=4),
        TextChunk("", 2, token_ids=(5, 6)),
        TextChunk("x" * 100_000, 9, None, 4, FinishReason.LENGTH),
    ]
    async with connected() as (triton, generator):
        completion = Completion(generator, parameters("a"))
        await registered(triton, "a")
        triton.client.burst(("a", sent[0]), ("a", sent[1]))
        triton.client.burst(("a", sent[2]))
        triton.client.burst(ends=["a"])
        await completion.over()
        assert completion.chunks == sent


async def test_silent_chunks_are_skipped() -> None:
    async with connected() as (triton, generator):
        completion = Completion(generator, parameters("a"))
        await registered(triton, "a")
        triton.client.burst(("a", "x"), ("a", ""), ("a", last_chunk()), ("a", ""), ends=["a"])
        await completion.over()
        assert completion.chunks == [TextChunk("x", 1), last_chunk()]


async def test_requests_of_the_same_moment_share_a_bundle() -> None:
    async with connected() as (triton, generator):
        triton.on_bundle = end_at_once
        completions = [Completion(generator, parameters(f"key-{number}")) for number in range(MAX_BUNDLE_REQUESTS)]
        assert [await each.over() for each in completions] == [each.key for each in completions]
        assert [len(bundle) for bundle in triton.bundles] == [MAX_BUNDLE_REQUESTS]
        assert triton.request_ids == [f"id-key-0+{MAX_BUNDLE_REQUESTS - 1}"]
        assert triton.client.opened == 1


async def test_300_requests_at_once_each_get_their_text() -> None:
    async with connected() as (triton, generator):
        triton.on_bundle = end_at_once
        completions = [Completion(generator, parameters(f"key-{number}")) for number in range(300)]
        assert [await each.over() for each in completions] == [each.key for each in completions]
        assert [len(bundle) for bundle in triton.bundles] == [64, 64, 64, 64, 44]
        assert len({item.slot for bundle in triton.bundles for item in bundle}) == 300


async def test_requests_gather_while_bundles_are_unanswered() -> None:
    async with connected() as (triton, generator):
        triton.on_bundle = end_at_once
        triton.bundles_may_end.clear()
        completions = []
        for number in range(6):
            completions.append(Completion(generator, parameters(f"key-{number}")))
            await until(lambda: len(triton.bundles) >= min(len(completions), MAX_BUNDLES_UNDER_WAY))
        assert [len(bundle) for bundle in triton.bundles] == [1] * MAX_BUNDLES_UNDER_WAY
        triton.bundles_may_end.set()
        for completion in completions:
            await completion.over()
        assert [len(bundle) for bundle in triton.bundles] == [1, 1, 4]


async def test_large_requests_travel_in_bundles_of_their_own() -> None:
    prompts = {"a": "x", "b": "x" * 600_000, "c": "x" * 600_000, "d": "x" * 2_000_000, "e": "x"}
    async with connected() as (triton, generator):
        triton.on_bundle = end_at_once
        completions = [Completion(generator, parameters(key, prompt)) for key, prompt in prompts.items()]
        for completion in completions:
            await completion.over()
        keys = ["".join(item.parameters.request_key for item in bundle) for bundle in triton.bundles]
        assert sorted(keys) == ["ab", "c", "d", "e"]  # two calls at a time may overtake each other
        assert all(size <= MAX_BUNDLE_BYTES for size, key in zip(triton.bundle_bytes, keys, strict=True) if key != "d")


async def test_request_that_json_cannot_carry_fails_alone() -> None:
    async with connected() as (triton, generator):
        triton.on_bundle = end_at_once
        bad, good = Completion(generator, parameters("bad", "\ud800")), Completion(generator, parameters("good"))
        assert await good.over() == "good"
        with pytest.raises(TypeError):
            await bad.over()


async def test_error_of_one_request_leaves_the_others_of_its_bundle() -> None:
    refusal = PipelineError(ErrorCode.CONTEXT_LENGTH_EXCEEDED, "9 of 8 tokens", param="prompt", retry_after_s=1.5)
    async with connected() as (triton, generator):
        bad, good = Completion(generator, parameters("bad")), Completion(generator, parameters("good"))
        await registered(triton, "bad", "good")
        triton.client.burst(("good", last_chunk("fine")), ends=["good"], errors=[("bad", refusal)])
        assert await good.over() == "fine"
        error = await bad.failed()
    assert (error.code, error.message, error.param, error.retry_after_s) == (
        refusal.code,
        refusal.message,
        "prompt",
        1.5,
    )


NO_SHARED_MEMORY = "in ensemble 'ensemble', Failed to increase the shared memory pool size for key 'x' to 4 bytes."


@pytest.mark.parametrize(
    ("failure", "expected", "code"),
    [
        (NO_SHARED_MEMORY, NoRoomError, ErrorCode.SERVICE_UNAVAILABLE),
        ("[error code=queue_full] full", PipelineError, ErrorCode.QUEUE_FULL),
        ("Stub process 'preprocess_0_0' is not healthy.", PipelineError, ErrorCode.ENGINE_UNAVAILABLE),
        ("Server is stopping, x", UnreachableError, ErrorCode.SERVICE_UNAVAILABLE),
        ((grpc.StatusCode.UNAVAILABLE, "failed to connect to all addresses"), UnreachableError, None),
        ((grpc.StatusCode.UNAVAILABLE, "Socket closed"), PipelineError, ErrorCode.SERVICE_UNAVAILABLE),
    ],
)
async def test_failure_of_a_bundle_fails_each_of_its_requests(
    failure: Failure, expected: type[PipelineError], code: ErrorCode | None
) -> None:
    async with connected() as (triton, generator):
        triton.bundle_failure = failure
        completions = [Completion(generator, parameters(key)) for key in "abc"]
        errors = [await completion.failed() for completion in completions]
        assert [type(error) for error in errors] == [expected] * 3
        assert {error.code for error in errors} == {code or ErrorCode.SERVICE_UNAVAILABLE}
        assert len({id(error) for error in errors}) == 3  # each task raises an exception of its own
        if expected is not UnreachableError:  # it may run there nevertheless
            await until(lambda: sorted(triton.cancelled) == ["a", "b", "c"])
        triton.bundle_failure = None
        triton.on_bundle = end_at_once
        assert await Completion(generator, parameters("d")).over() == "d"


async def test_failed_channel_fails_registered_requests_and_the_next_ones_use_another_client_id() -> None:
    async with connected() as (triton, generator):
        first, second = Completion(generator, parameters("a")), Completion(generator, parameters("b"))
        await registered(triton, "a", "b")
        old = triton.client
        old.burst(("a", "x"))
        await until(lambda: first.text == "x")
        old.fail_channel("in ensemble 'ensemble', Stub process 'postprocess_0_0' is not healthy.")
        assert (await first.failed()).code is ErrorCode.ENGINE_UNAVAILABLE
        assert (await second.failed()).code is ErrorCode.ENGINE_UNAVAILABLE
        await until(lambda: sorted(triton.cancelled) == ["a", "b"])
        triton.on_bundle = end_at_once
        assert await Completion(generator, parameters("c")).over() == "c"
        assert triton.client.client_id != old.client_id


async def test_channel_of_registered_requests_that_fails_is_never_unreachable() -> None:
    """The requests have started, so they must not be retried on another endpoint."""
    async with connected() as (triton, generator):
        completion = Completion(generator, parameters("a"))
        await registered(triton, "a")
        triton.client.fail_channel("Server is stopping, x")
        error = await completion.failed()
        assert error.code is ErrorCode.SERVICE_UNAVAILABLE
        assert not isinstance(error, UnreachableError)


async def test_bundle_decides_for_its_requests_if_the_channel_fails_first() -> None:
    """A Triton that is stopping refuses both calls; the requests may be retried elsewhere."""
    async with connected() as (triton, generator):
        triton.channel_failure = triton.bundle_failure = "Server is stopping, x"
        triton.bundles_may_end.clear()
        completion = Completion(generator, parameters("a"))
        await until(lambda: triton.refused_channels == 1 and len(triton.bundles) == 1)
        assert not completion.task.done()
        triton.bundles_may_end.set()
        assert isinstance(await completion.failed(), UnreachableError)


async def test_request_that_is_registered_after_its_channel_failed_fails_and_is_cancelled() -> None:
    async with connected() as (triton, generator):
        triton.channel_failure = "Server is stopping, x"
        triton.bundles_may_end.clear()
        completion = Completion(generator, parameters("a"))
        await until(lambda: triton.refused_channels == 1 and len(triton.bundles) == 1)
        triton.bundles_may_end.set()
        assert not isinstance(await completion.failed(), UnreachableError)
        await until(lambda: triton.cancelled == ["a"])


async def test_no_connection_is_unreachable() -> None:
    generator = TritonGenerator(TritonChannel("127.0.0.1:1"), "ensemble")
    completions = [Completion(generator, parameters(key)) for key in "abc"]
    assert [type(await completion.failed()) for completion in completions] == [UnreachableError] * 3
    await generator.close()


@pytest.mark.parametrize(
    "json",
    [b"no JSON", b'{"serial": 0}', b'{"serial": 1, "slots": [], "texts": [], "totals": []}'],
    ids=["no JSON", "another release", "a missing burst"],
)
async def test_burst_that_is_unreadable_or_out_of_order_fails_the_requests(json: bytes) -> None:
    async with connected() as (triton, generator):
        completion = Completion(generator, parameters("a"))
        await registered(triton, "a")
        client = triton.client
        client.send_json(json)
        client.burst(("a", "late"))
        with capture_logs() as logs:
            await completion.failed()
        assert [line["event"] for line in logs if line["log_level"] == "error"]
        assert completion.text == ""
        await until(lambda: triton.cancelled == ["a"])
        finished = triton.finished
        client.end_channel()
        await until(lambda: triton.finished == finished + 1)  # the call was read to its end
        assert triton.cancelled_calls == 0


async def test_unknown_slots_are_ignored() -> None:
    async with connected() as (triton, generator):
        completion = Completion(generator, parameters("a"))
        await registered(triton, "a")
        client = triton.client
        slot = client.slots["a"]
        client.send(TextBurst(0, [(slot + 7, TextChunk("?", 1)), (slot, TextChunk("x", 1))], [(slot + 8, None)]))
        client.burst(ends=["a"])
        assert await completion.over() == "x"


async def test_callback_that_raises_fails_its_own_request() -> None:
    def refuse(chunk: TextChunk) -> None:
        raise RuntimeError("a secret")

    async with connected() as (triton, generator):
        bad = asyncio.create_task(generator.generate(parameters("bad"), refuse))
        good = Completion(generator, parameters("good"))
        await registered(triton, "bad", "good")
        triton.client.burst(("bad", "x"), ("good", "x"), ("bad", "y"), ("good", last_chunk("y")), ends=["good", "bad"])
        assert await good.over() == "xy"
        with pytest.raises(PipelineError) as caught:
            await bad
        assert caught.value.code is ErrorCode.INTERNAL_ERROR
        assert "secret" not in caught.value.message
        await until(lambda: triton.cancelled == ["bad"])


async def test_abandoned_request_is_forgotten_and_no_call_is_cancelled() -> None:
    async with connected() as (triton, generator):
        gone, other = Completion(generator, parameters("gone")), Completion(generator, parameters("other"))
        await registered(triton, "gone", "other")
        gone.task.cancel()
        await asyncio.wait({gone.task})
        triton.client.burst(("gone", "x"), ("other", last_chunk("y")), ends=["other", "gone"])
        assert await other.over() == "y"
        assert (gone.text, triton.cancelled_calls, triton.cancelled) == ("", 0, [])


async def test_request_that_waits_to_be_sent_is_cancelled_without_a_message() -> None:
    async with connected() as (triton, generator):
        triton.on_bundle = end_at_once
        triton.bundles_may_end.clear()
        sent = []
        for key in "ab":
            sent.append(Completion(generator, parameters(key)))
            await until(lambda: len(triton.bundles) == len(sent))
        waiting = [Completion(generator, parameters(key)) for key in "cd"]
        await asyncio.sleep(0)  # their tasks start
        await generator.cancel("c")
        await waiting[0].over()
        assert [chunk.finish_reason for chunk in waiting[0].chunks] == [FinishReason.CANCELLED]
        waiting[1].task.cancel()
        await generator.cancel("a")  # already sent
        assert triton.cancelled == ["a"]
        triton.bundles_may_end.set()
        last = Completion(generator, parameters("e"))
        assert await last.over() == "e"
        assert [item.parameters.request_key for bundle in triton.bundles for item in bundle] == ["a", "b", "e"]


async def test_heartbeat_reports_the_bursts_that_were_read() -> None:
    async with connected() as (triton, generator):
        completion = Completion(generator, parameters("a"))
        await registered(triton, "a")
        for number in range(3):
            triton.client.burst(("a", str(number)))
        await until(lambda: bool(triton.renewals))
        assert triton.renewals[0] == (triton.client.client_id, 3)
        triton.client.burst(ends=["a"])
        await completion.over()


async def test_slow_process_gets_everything_in_order() -> None:
    """More than the windows of gRPC and of the connection hold waits for it."""
    texts = [f"{number} " + "x" * 100_000 for number in range(200)]
    received: list[str] = []

    def handle_slowly(chunk: TextChunk) -> None:
        time.sleep(0.001)
        received.append(chunk.text)

    async with connected() as (triton, generator):
        slow = asyncio.create_task(generator.generate(parameters("slow"), handle_slowly))
        other = Completion(generator, parameters("other"))
        await registered(triton, "slow", "other")
        for text in texts:
            triton.client.burst(("slow", text), ("other", "y"))
        triton.client.burst(ends=["slow", "other"])
        await asyncio.wait_for(slow, 20)
        assert received == texts
        assert await other.over() == "y" * len(texts)


async def test_close_ends_all_requests() -> None:
    async with connected() as (triton, generator):
        registered_one = Completion(generator, parameters("a"))
        await registered(triton, "a")
        triton.bundles_may_end.clear()
        others = []
        for key in "bcde":  # in bundles under way, and waiting
            others.append(Completion(generator, parameters(key)))
            await asyncio.sleep(0.01)
        await asyncio.wait_for(generator.close(), 5)
        for completion in [registered_one, *others]:
            assert (await completion.failed()).code is ErrorCode.SERVICE_UNAVAILABLE


async def test_close_waits_for_the_end_of_an_unused_channel() -> None:
    async with connected() as (triton, generator):
        triton.on_bundle = end_at_once
        await Completion(generator, parameters("a")).over()
        closing = asyncio.create_task(generator.close())
        finished = triton.finished
        assert not (await asyncio.wait({closing}, timeout=0.05))[0]
        triton.client.end_channel()
        await closing
        assert (triton.finished, triton.cancelled_calls) == (finished + 1, 0)
