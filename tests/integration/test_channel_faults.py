"""Faults under channels, with many streams on each: every stream ends exactly once, and the service goes on.

The front end has two workers, and a proxy between it and Triton, whose connections a test can reset.
These tests print rows for docs/reliability.md (`pytest -rP`).
"""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from frontend.backends.grpc_channel import TritonChannel
from frontend.backends.triton import TritonGenerator
from launcher.ports import free_ports
from llm_pipeline.protocol.messages import CompletionParameters
from tests.support.many_streams import ManyStreams, StreamEnding
from tests.support.stack import RunningStack, running_stack
from tests.support.synthetic_answers import SyntheticAnswers
from tests.support.tcp_proxy import TcpProxy
from tests.support.waiting import wait_until

pytestmark = pytest.mark.triton

WORKERS = 2
STREAMS = 64
TOKENS = 40
STEPS_PER_S = 20
LEASE_S = 3
RETRYABLE = {"service_unavailable", "engine_unavailable"}


@dataclass(frozen=True)
class ProxiedStack:
    """The stack, the proxy between its front end and its Triton, and the answers of its engine."""

    running: RunningStack
    proxy: TcpProxy
    answers: SyntheticAnswers

    def streams(self, count: int, max_tokens: int) -> ManyStreams:
        return ManyStreams(self.running, [number % 997 for number in range(count)], self.answers, max_tokens=max_tokens)

    @property
    def cancelled(self) -> float:
        return self.running.decode_metric("decode_cancelled_requests_total")

    def wait_until_idle(self, limit_s: float) -> float:
        return wait_until(lambda: self.running.active_requests == 0, limit_s=limit_s, what="decode's slots are free")

    def serves(self) -> None:
        """AssertionError unless all workers complete requests soon, and then many of them."""
        wait_until(lambda: self._completes_all(16, max_tokens=2), limit_s=30, what="answers of all workers")
        assert self._completes_all(STREAMS, max_tokens=10)

    def _completes_all(self, count: int, max_tokens: int) -> bool:
        with self.streams(count, max_tokens) as streams:
            return summary(streams.endings(within_s=30)) == {"length": count}

    def workers(self) -> list[psutil.Process]:
        return [
            child
            for child in psutil.Process(self.running.frontend.pid).children()
            if "frontend.worker_main" in child.cmdline()
        ]

    def ports_of(self, worker: psutil.Process) -> set[int]:
        """The clients' ports of the worker's connections."""
        port = self.running.address[1]
        connections = worker.net_connections("tcp")
        return {each.raddr.port for each in connections if each.raddr and each.laddr.port == port}


def summary(endings: Sequence[StreamEnding]) -> Counter[str]:
    """The number of streams with each kind of end."""
    return Counter(ending.finish_reason or ending.error or "connection broken" for ending in endings)


def split(endings: Sequence[StreamEnding], ports: set[int]) -> tuple[list[StreamEnding], list[StreamEnding]]:
    """The streams of the connections with these ports, and the others."""
    return (
        [ending for ending in endings if ending.record.port in ports],
        [ending for ending in endings if ending.record.port not in ports],
    )


@pytest.fixture(scope="module")
def stack(engine_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProxiedStack]:
    (grpc_port,) = free_ports(1)
    with TcpProxy(grpc_port) as proxy:
        environment = {
            "TRITON_GRPC_PORT": str(grpc_port),
            "TRITON_GRPC_URL": proxy.address,
            "FRONTEND_WORKERS": str(WORKERS),
            "MAX_IN_FLIGHT": "2048",
            "EXECUTOR": "scripted",
            "SCRIPTED_STEPS_PER_S": str(STEPS_PER_S),
            "SCRIPTED_MAX_ACTIVE": "1024",
            "CLIENT_LEASE_TIMEOUT_S": str(LEASE_S),
        }
        with running_stack(tmp_path_factory.mktemp("channel-faults"), engine_dir, **environment) as running:
            yield ProxiedStack(running, proxy, SyntheticAnswers(engine_dir))


def test_all_kinds_of_clients_are_served_exactly_at_once(stack: ProxiedStack) -> None:
    """The front end's channels, Triton's HTTP `generate` and `generate_stream`, and gRPC streams of one request."""
    numbers = range(100, 108)
    texts = {number: stack.answers.text([number], TOKENS) for number in numbers}
    with stack.streams(STREAMS, max_tokens=TOKENS) as streams, ThreadPoolExecutor(3 * len(numbers)) as pool:
        others = [
            pool.submit(ask, stack.running, number)
            for ask in (generate, generate_stream, infer_by_grpc)
            for number in numbers
        ]
        assert [each.result(timeout=30) for each in others] == [*texts.values()] * 3
        assert summary(streams.endings(within_s=30)) == {"length": STREAMS}


def generate(stack: RunningStack, prompt: int) -> str:
    """Text by Triton's HTTP `generate`."""
    url, inputs = f"{stack.triton_http_url}/v2/models/ensemble/generate", {"input_ids": [prompt], "max_tokens": TOKENS}
    answer = httpx.post(url, json=inputs, trust_env=False, timeout=30)
    text: str = answer.raise_for_status().json()["text_output"]
    return text


def generate_stream(stack: RunningStack, prompt: int) -> str:
    """Text by Triton's HTTP `generate_stream`."""
    url = f"{stack.triton_http_url}/v2/models/ensemble/generate_stream"
    inputs = {"input_ids": [prompt], "max_tokens": TOKENS, "stream": True}
    answer = httpx.post(url, json=inputs, trust_env=False, timeout=30).raise_for_status()
    return "".join(event["text_output"] for event in triton_events(answer.text))


def triton_events(body: str) -> list[dict[str, Any]]:
    return [json.loads(line.removeprefix("data: ")) for line in body.split("\n\n") if line]


def infer_by_grpc(stack: RunningStack, prompt: int) -> str:
    """Text by a gRPC stream of a single request."""
    parameters = CompletionParameters(
        request_key=f"grpc-{prompt}", request_id="r", token_ids=(prompt,), max_tokens=TOKENS, stream=True
    )
    return asyncio.run(text_of(stack.triton_grpc_url, parameters))


async def text_of(address: str, parameters: CompletionParameters) -> str:
    generator, text = TritonGenerator(TritonChannel(address), "ensemble", use_channels=False), []
    try:
        await generator.generate(parameters, lambda chunk: text.append(chunk.text))
    finally:
        await generator.close()
    return "".join(text)


def test_a_reset_connection_ends_a_thousand_streams_once(stack: ProxiedStack) -> None:
    cancelled = stack.cancelled
    with stack.streams(1000, max_tokens=2000) as streams:
        streams.wait_until_begun()
        assert stack.running.active_requests == 1000
        started = time.monotonic()
        assert stack.proxy.cut() >= WORKERS
        endings = streams.endings(within_s=20)
        ended_s = time.monotonic() - started
    assert set(summary(endings)) <= RETRYABLE, summary(endings)
    stack.wait_until_idle(limit_s=15)
    freed_s = time.monotonic() - started
    assert stack.cancelled == cancelled + 1000
    stack.serves()
    print(f"| the connection to Triton is reset | {dict(summary(endings))} | {ended_s:.1f} s | {freed_s:.1f} s |")


def test_a_killed_worker_takes_only_its_own_streams_with_it(stack: ProxiedStack) -> None:
    cancelled = stack.cancelled
    with stack.streams(STREAMS, max_tokens=8 * STEPS_PER_S) as streams:
        streams.wait_until_begun()
        victim = stack.workers()[0]
        ports = stack.ports_of(victim)
        started = time.monotonic()
        victim.kill()
        wait_until(lambda: stack.cancelled > cancelled, limit_s=LEASE_S + 5, what="its requests are cancelled")
        freed_s = time.monotonic() - started
        broken, untouched = split(streams.endings(within_s=30), ports)
    assert broken
    assert untouched
    assert set(summary(broken)) == {"connection broken"}
    assert set(summary(untouched)) == {"length"}
    assert stack.cancelled == cancelled + len(broken)
    assert freed_s > LEASE_S - 1.5, "no sooner than its lease"
    wait_until(lambda: len(stack.workers()) == WORKERS, limit_s=20, what="a new worker")
    stack.serves()
    print(f"| kill -9 of a worker | {len(broken)} connections broken, {len(untouched)} untouched | {freed_s:.1f} s |")


def test_a_pause_of_a_worker_within_its_lease_costs_no_token(stack: ProxiedStack) -> None:
    cancelled = stack.cancelled
    with stack.streams(STREAMS, max_tokens=5 * STEPS_PER_S) as streams:
        streams.wait_until_begun()
        paused = stack.workers()[0]
        paused.send_signal(signal.SIGSTOP)
        try:
            time.sleep(LEASE_S / 2)  # the length of the pause
        finally:
            paused.send_signal(signal.SIGCONT)
        endings = streams.endings(within_s=30)
    assert summary(endings) == {"length": STREAMS}
    assert stack.cancelled == cancelled


def test_a_pause_of_a_worker_beyond_its_lease_ends_its_requests_with_an_error(stack: ProxiedStack) -> None:
    cancelled = stack.cancelled
    with stack.streams(STREAMS, max_tokens=8 * STEPS_PER_S) as streams:
        streams.wait_until_begun()
        paused = stack.workers()[0]
        ports = stack.ports_of(paused)
        paused.send_signal(signal.SIGSTOP)
        try:
            count = sum(record.port in ports for record in streams.records)
            wait_until(
                lambda: stack.cancelled == cancelled + count, limit_s=LEASE_S + 5, what="its requests are cancelled"
            )
        finally:
            paused.send_signal(signal.SIGCONT)
        own, others = split(streams.endings(within_s=30), ports)
    assert len(own) == count > 0
    assert set(summary(own)) <= RETRYABLE, summary(own)
    assert set(summary(others)) == {"length"}
    stack.serves()


def test_a_triton_that_gets_sigterm_with_streams_is_replaced(stack: ProxiedStack) -> None:
    """By its launcher, also with the requests of broken connections, which Triton 2.51 never counts as ended."""
    with stack.streams(STREAMS, max_tokens=2000) as streams:
        streams.wait_until_begun()
        triton = psutil.Process(stack.running.triton.pid)
        started = time.monotonic()
        triton.terminate()
        endings = streams.endings(within_s=20)
        ended_s = time.monotonic() - started
    assert set(summary(endings)) <= RETRYABLE, summary(endings)
    stack.serves()
    back_s = time.monotonic() - started
    print(f"| SIGTERM to Triton with {STREAMS} streams | {dict(summary(endings))} | {ended_s:.1f} s | {back_s:.1f} s |")
