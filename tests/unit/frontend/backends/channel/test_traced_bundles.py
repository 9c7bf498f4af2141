"""Traced requests travel in bundles of their own, whose calls carry the headers of their span."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from frontend.backends.channel.client import MAX_TRACES_APART
from frontend.backends.grpc_channel import TritonChannel
from frontend.backends.triton import TritonGenerator
from llm_pipeline.protocol.channel import BundleItem, TextBurst
from llm_pipeline.protocol.engine_metrics import EngineReport, TracedRequest
from llm_pipeline.protocol.messages import CompletionParameters, TraceContext
from tests.support.app import until
from tests.support.channel_triton import ChannelTriton, ClientSide, Completion, channel_triton, last_chunk, parameters


def context(number: int, choice: int = 0) -> TraceContext:
    return TraceContext(f"00-{number:032x}-00f067aa0ba902b7-01", f"vendor={number}", choice)


def request(key: str, trace: TraceContext | None) -> CompletionParameters:
    return replace(parameters(key), trace=trace)


def end_at_once(client: ClientSide, items: list[BundleItem]) -> None:
    keys = [item.parameters.request_key for item in items]
    client.burst(*((key, last_chunk(key)) for key in keys), ends=keys)


@asynccontextmanager
async def connected(reports: list[EngineReport] | None = None) -> AsyncIterator[tuple[ChannelTriton, TritonGenerator]]:
    async with channel_triton() as triton:
        triton.on_bundle = end_at_once
        on_report = (lambda report: None) if reports is None else reports.append
        generator = TritonGenerator(TritonChannel(triton.address), "ensemble", on_report=on_report)
        try:
            yield triton, generator
        finally:
            triton.end_channels()
            await generator.close()


async def complete(generator: TritonGenerator, traces: Sequence[TraceContext | None]) -> None:
    """Runs one request for each, begun in the same moment."""
    completions = [Completion(generator, request(str(index), trace)) for index, trace in enumerate(traces)]
    for completion in completions:
        await completion.over()


def sent_bundles(triton: ChannelTriton) -> dict[str, dict[str, str]]:
    """The headers of each bundle, by the keys of its requests. Two bundles that are under way arrive in any order."""
    keys = [" ".join(item.parameters.request_key for item in bundle) for bundle in triton.bundles]
    return dict(zip(keys, triton.bundle_headers, strict=True))


async def test_a_traced_request_is_alone_in_its_bundle_and_splits_no_other() -> None:
    """A call costs as much as several requests that share one."""
    async with connected() as (triton, generator):
        await complete(generator, [None, context(1), None, None])
        headers = {"traceparent": context(1).traceparent, "tracestate": "vendor=1"}
        assert sent_bundles(triton) == {"0 2 3": {}, "1": headers}


async def test_the_choices_of_one_request_share_a_bundle() -> None:
    async with connected() as (triton, generator):
        await complete(generator, [context(1, 0), context(1, 1), context(2, 0)])
        assert sent_bundles(triton).keys() == {"0 1", "2"}
        choices = {item.parameters.request_key: item.parameters.trace for bundle in triton.bundles for item in bundle}
        assert choices == {"0": context(1, 0), "1": context(1, 1), "2": context(2, 0)}


async def test_requests_of_many_traces_share_bundles_and_keep_their_traces() -> None:
    """Bundles of their own would hold up the other requests."""
    async with connected() as (triton, generator):
        traces = [context(number) for number in range(MAX_TRACES_APART + 1)]
        await complete(generator, [*traces, None])
        assert sent_bundles(triton) == {"0 1 2 3 4 5": {}}
        (bundle,) = triton.bundles
        assert [item.parameters.trace for item in bundle] == [*traces, None]


@given(numbers=st.lists(st.none() | st.integers(1, 3), min_size=1, max_size=12))
def test_no_bundle_has_requests_of_two_traces(numbers: list[int | None]) -> None:
    async def run() -> None:
        async with connected() as (triton, generator):
            await complete(generator, [None if number is None else context(number) for number in numbers])
            for bundle, headers in zip(triton.bundles, triton.bundle_headers, strict=True):
                (sent,) = {item.parameters.trace for item in bundle}
                assert headers.get("traceparent") == (None if sent is None else sent.traceparent)
            arrived = [item.parameters.request_key for bundle in triton.bundles for item in bundle]
            assert sorted(arrived) == sorted(str(index) for index in range(len(numbers)))

    asyncio.run(run())


async def test_a_traced_request_is_cancelled_like_any_other() -> None:
    async with connected() as (triton, generator):
        triton.on_bundle = lambda client, items: None
        completion = Completion(generator, request("a", context(1)))
        await until(lambda: triton.answered_bundles == 1)
        await generator.cancel("a")
        await until(lambda: triton.cancelled == ["a"])
        triton.client.burst(ends=["a"])
        await completion.over()


async def test_decodes_report_arrives_before_the_request_ends() -> None:
    reports: list[EngineReport] = []
    sent = TracedRequest(context(1).traceparent, "vendor=1", 0, 1.0, 2.0, finish_reason="length")
    async with connected(reports) as (triton, generator):
        triton.on_bundle = lambda client, items: None
        completion = Completion(generator, request("a", context(1)))
        await until(lambda: bool(triton.clients) and triton.client.has_channel and "a" in triton.client.slots)
        slot = triton.client.slots["a"]
        triton.client.send(TextBurst(0, [(slot, last_chunk())], [(slot, None)], EngineReport(traced=[sent])))
        await completion.over()
        assert [found for report in reports for found in report.traced] == [sent]
