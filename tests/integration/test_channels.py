"""Channels on the real Triton: their replacement under load, their limits, and a Triton that stops under them.

The tests of the bare Triton use the front end's own client in this process, and an engine without a set pace. They
share that Triton and run in order.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import orjson
import psutil
import pytest

from frontend.backends.grpc_channel import TritonChannel
from frontend.backends.triton import TritonGenerator
from launcher.local import triton_wheel
from launcher.local.processes import ChildProcess
from launcher.ports import free_ports
from launcher.settings import StackSettings
from llm_pipeline.protocol.errors import ErrorCode
from llm_pipeline.protocol.messages import CompletionParameters
from tests.support.channel_clients import DeafClient, Received, TestClient, channel_client
from tests.support.many_streams import ManyStreams
from tests.support.stack import RunningStack, running_stack
from tests.support.synthetic_answers import SyntheticAnswers
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.triton, pytest.mark.alone]

MIB = 2**20
IDLE_STOP_LIMIT_S = 8.0
STREAMS_END_LIMIT_S = 8.0  # two heartbeats that are refused take 2 s
EXIT_LIMIT_S = 15.0  # Triton's exit timeout is 10 s


@dataclass(frozen=True)
class BareTriton:
    """A Triton without a front end, and the answers of its engine."""

    process: ChildProcess
    address: str
    http_url: str
    metrics_url: str
    answers: SyntheticAnswers

    def is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.http_url}/v2/health/ready", trust_env=False).status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    def metric(self, name: str, model: str) -> float:
        """A value of Triton's metrics."""
        text = httpx.get(f"{self.metrics_url}/metrics", trust_env=False).text
        start = f'{name}{{model="{model}"'
        return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(start))

    def memory_mib(self) -> float:
        """Private memory of the server and its stubs."""
        server = psutil.Process(self.process.pid)
        return sum(each.memory_full_info().uss for each in (server, *server.children(recursive=True))) / MIB

    def is_exact(self, received: Received) -> bool:
        """Whether a completion has all of its text and, if it asked for them, token ids."""
        prompt, count = received.parameters.token_ids, received.parameters.max_tokens
        assert prompt is not None
        assert count is not None
        return (
            received.error is None
            and received.finish_reason == "length"
            and received.text == self.answers.text(prompt, count)
            and (not received.token_ids or tuple(received.token_ids) == self.answers.token_ids(prompt, count))
        )


@contextmanager
def bare_triton(folder: Path, engine_dir: Path, **environment: str) -> Iterator[BareTriton]:
    """Runs a Triton without a front end and without a launcher."""
    http, grpc, metrics = free_ports(3)
    settings = StackSettings(
        executor="scripted", triton_http_port=http, triton_grpc_port=grpc, triton_metrics_port=metrics
    )
    process = ChildProcess(
        "Triton",
        triton_wheel.tritonserver_command(settings, triton_wheel.prepare_backends(folder)),
        {**triton_wheel.environment(settings, engine_dir), **environment},
        folder / "triton.log",
        stop_timeout_s=20,
    )
    http_url, metrics_url = (f"http://127.0.0.1:{port}" for port in (http, metrics))
    running = BareTriton(process, f"127.0.0.1:{grpc}", http_url, metrics_url, SyntheticAnswers(engine_dir))
    try:
        process.start()
        wait_until(running.is_ready, limit_s=60, what="a ready Triton")
        yield running
    finally:
        process.stop()
        process.kill()


@pytest.fixture(scope="module")
def triton(engine_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BareTriton]:
    """Its engine has no pace."""
    environment = {"SCRIPTED_STEPS_PER_S": "0", "SCRIPTED_MAX_ACTIVE": "1024"}
    with bare_triton(tmp_path_factory.mktemp("channels"), engine_dir, **environment) as running:
        yield running


def parameters(prompt: Sequence[int], max_tokens: int, **others: Any) -> CompletionParameters:
    key = f"{prompt[0]}-{time.monotonic_ns()}"
    return CompletionParameters(
        request_key=key, request_id=key, token_ids=tuple(prompt), max_tokens=max_tokens, stream=True, **others
    )


def many(count: int, max_tokens: int, **others: Any) -> list[CompletionParameters]:
    """Requests with different answers."""
    return [parameters([number % 997], max_tokens, **others) for number in range(count)]


async def complete_all(client: TestClient, requests: Sequence[CompletionParameters]) -> list[Received]:
    return await asyncio.gather(*(client.complete(request) for request in requests))


@pytest.mark.parametrize(("streams", "tokens"), [(512, 4000), (16, 8000)], ids=["large bursts", "small bursts"])
async def test_no_token_is_lost_doubled_or_out_of_order_when_channels_are_replaced(
    triton: BareTriton, streams: int, tokens: int
) -> None:
    """Two million tokens of 512 streams, in bursts of their largest size, and 128,000 in small bursts."""
    async with channel_client(triton.address, max_age_s=0.02) as client:
        rounds = 0
        while client.connection.opened <= 10:
            received = await complete_all(client, many(streams, tokens, return_token_ids=True))
            assert all(map(triton.is_exact, received))
            rounds += 1
            assert rounds < 10, "ten replacements"
    print(f"{rounds * streams * tokens} tokens exact over {client.connection.opened} channels")


async def test_prompts_of_any_size_travel_beside_each_other(triton: BareTriton) -> None:
    """64 prompts of 7,000 tokens are 2.7 MB of JSON; a text of 4 MiB is refused for its length, alone."""
    long = [parameters([10_000 + number] * 7000, 100) for number in range(64)]
    too_long = CompletionParameters("too-long", "too-long", prompt_text="hello " * (4 * MIB // 6), max_tokens=10)
    async with channel_client(triton.address) as client:
        served, (refused,), short = await asyncio.gather(
            complete_all(client, long), complete_all(client, [too_long]), complete_all(client, many(64, 100))
        )
    assert all(map(triton.is_exact, [*served, *short]))
    assert refused.error is not None
    assert refused.error.code is ErrorCode.CONTEXT_LENGTH_EXCEEDED
    assert not refused.chunks


async def test_a_client_that_reads_nothing_holds_back_its_own_output_only(triton: BareTriton) -> None:
    """decode keeps the rest of eight million tokens, with 24 bytes a token, until it is read."""
    client, before, before_mib = DeafClient(triton.address), bursts(triton), triton.memory_mib()
    try:
        await client.begin(many(1024, 8000))
        sent = await settled(lambda: bursts(triton) - before, client.renew)
        grown_mib = triton.memory_mib() - before_mib
        async with channel_client(triton.address) as other:
            assert all(map(triton.is_exact, await complete_all(other, many(64, 500))))
        totals, ended = await client.read(until_silent_s=1.0)
        assert not ended
        print(f"{sent:.0f} bursts and {sum(totals.values())} tokens unread; {grown_mib:.0f} MiB more in Triton")
        assert 0 < sum(totals.values()) < 1024 * 8000 / 2
        assert grown_mib < 400
        totals, ended = await client.read(until_silent_s=5.0, renews=True)
        assert len(ended) == 1024
        assert set(totals.values()) == {8000}
    finally:
        await client.close()


def bursts(triton: BareTriton) -> float:
    """The number of messages that postprocess has handled."""
    return triton.metric("nv_inference_request_success", "postprocess")


async def settled(value: Callable[[], float], between: Callable[[], Awaitable[None]]) -> float:
    """A value once it has not changed for a second; awaits `between` twice a second until then."""
    values = [-1.0, -2.0, -3.0]
    for _ in range(80):
        values = [*values[1:], value()]
        if len(set(values)) == 1:
            return values[0]
        await between()
        await asyncio.sleep(0.5)
    raise AssertionError("it goes on for 40 s")


async def test_triton_stops_soon_with_an_idle_channel(triton: BareTriton) -> None:
    """The last of these tests: it stops their Triton."""
    async with channel_client(triton.address) as client:
        assert triton.is_exact(await client.complete(parameters([1], 50)))
        started = time.monotonic()
        await asyncio.to_thread(triton.process.stop)
        took_s = time.monotonic() - started
    print(f"Triton ended after {took_s:.1f} s")
    assert took_s < IDLE_STOP_LIMIT_S


async def test_streams_of_a_triton_that_gets_sigterm_end_with_an_error(engine_dir: Path, tmp_path: Path) -> None:
    """It ends within its exit timeout, although the requests would take 40 s."""
    with bare_triton(tmp_path, engine_dir) as triton:
        async with channel_client(triton.address) as client:
            completions = asyncio.create_task(complete_all(client, many(64, 8000)))
            await asyncio.to_thread(wait_until, lambda: is_active(triton, 64), limit_s=20, what="64 streams")
            started = time.monotonic()
            stopping = asyncio.create_task(asyncio.to_thread(triton.process.stop))
            received = await asyncio.wait_for(completions, 20)
            ended_s = time.monotonic() - started
            await stopping
            stopped_s = time.monotonic() - started
    print(f"64 streams ended after {ended_s:.1f} s, Triton after {stopped_s:.1f} s")
    assert ended_s < STREAMS_END_LIMIT_S
    assert stopped_s < EXIT_LIMIT_S
    for each in received:
        assert each.error is not None
        assert each.error.code in (ErrorCode.SERVICE_UNAVAILABLE, ErrorCode.ENGINE_UNAVAILABLE)
        assert triton.answers.text(each.parameters.token_ids or (), 8000).startswith(each.text)


def is_active(triton: BareTriton, count: int) -> bool:
    """Whether this number of requests has a slot in decode."""
    return triton.metric("decode_active_requests", "decode") == count


# --- Other settings and engines --------------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", ["USE_CHANNELS", "COALESCE"])
def test_the_ways_for_comparison_serve_the_same_text(engine_dir: Path, tmp_path: Path, setting: str) -> None:
    """USE_CHANNELS=false: a response stream for each request. COALESCE=false: an event for each token."""
    answers = SyntheticAnswers(engine_dir)
    with (
        running_stack(tmp_path, engine_dir, EXECUTOR="scripted", **{setting: "false"}) as stack,
        ManyStreams(stack, range(16), answers, max_tokens=50, return_token_ids=True) as streams,
    ):
        endings = streams.endings(within_s=30)
        assert [ending.finish_reason for ending in endings] == ["length"] * 16
        if setting == "COALESCE":
            events = [event for ending in endings for event in ending.record.events[:-1]]  # without [DONE]
            ids = [json.loads(event.removeprefix("data: "))["choices"][0]["token_ids"] for event in events]
            assert [len(each) for each in ids] == [1] * 16 * 50


async def test_logprobs_of_prompts_beyond_the_size_of_a_burst_are_those_of_a_stream_of_its_own(
    cpu_stack: RunningStack,
) -> None:
    """700 tokens with logprobs count as more than the 16,384 of a burst."""
    story = "Once upon a time there was a fox who counted the stars, one by one, until the night was over. "
    requests = [
        replace(
            parameters([number], 8, num_logprobs=5, echo=True, temperature=0.0),
            token_ids=None,
            prompt_text=story * (6 + number),
        )
        for number in range(4)
    ]
    async with channel_client(cpu_stack.triton_grpc_url) as client:
        together = await complete_all(client, requests)
    alone = [await complete_alone(cpu_stack.triton_grpc_url, request) for request in requests]
    for one, other in zip(together, alone, strict=True):
        assert one.error is None
        assert one.text == other.text
        logprobs, expected = (orjson.loads(each.logprobs_json) for each in (one, other))
        assert logprobs["tokens"] == expected["tokens"]
        assert logprobs["token_logprobs"][1:] == pytest.approx(expected["token_logprobs"][1:], abs=0.02)


async def complete_alone(address: str, request: CompletionParameters) -> Received:
    """Runs one completion with a response stream of its own."""
    received = Received(replace(request, request_key=f"{request.request_key}-alone"))
    generator = TritonGenerator(TritonChannel(address), "ensemble", use_channels=False)
    try:
        await generator.generate(received.parameters, received.on_chunk)
    finally:
        await generator.close()
    return received
