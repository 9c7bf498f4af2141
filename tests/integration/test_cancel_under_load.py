"""A request that ends early frees its slot at once, also under load, and leaks nothing.

These tests print the table of docs/reliability.md (`pytest -rP`).
"""

from __future__ import annotations

import asyncio
import statistics
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.support.load import stream
from tests.support.raw_requests import open_request, request_bytes
from tests.support.stack import MODEL, RunningStack, running_stack
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.triton, pytest.mark.alone]

STREAMS = 64
ROUNDS = 3
# Target: 200 ms. The limit here only tells a freed slot from one that stays in use for 20 s.
LIMIT_S = 3.0
ABANDONED = 1000
WAVE = 200
WARM_UP_WAVES = 3


@pytest.fixture(scope="module")
def busy_stack(engine_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    environment = {"EXECUTOR": "scripted", "SCRIPTED_STEPS_PER_S": "200"}
    with running_stack(tmp_path_factory.mktemp("stopping"), engine_dir, **environment) as stack:
        yield stack


@contextmanager
def background(stack: RunningStack, count: int) -> Iterator[None]:
    """`count` long streams whose clients read, all in one thread."""

    host, port = stack.address
    head, body = request_bytes(stack, stream=True, max_tokens=8000)

    async def run() -> None:
        await asyncio.gather(*(read() for _ in range(count)), stopped.wait())

    async def read() -> None:
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(head + body)
        while not stopped.is_set():
            data: bytes = await asyncio.wait_for(reader.read(2**16), 30)
            if not data:
                break
        writer.close()

    loop = asyncio.new_event_loop()
    stopped = asyncio.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=(run(),))
    thread.start()
    try:
        wait_until(lambda: stack.active_requests == count, limit_s=30, what=f"{count} streams are running")
        yield
    finally:
        loop.call_soon_threadsafe(stopped.set)
        thread.join(timeout=30)
        loop.close()
        wait_until(lambda: stack.active_requests == 0, limit_s=15, what="all slots are free")


def disconnect(stack: RunningStack, *, is_stream: bool) -> float:
    connection = open_request(stack, stream=is_stream)
    wait_until(lambda: stack.active_requests == STREAMS + 1, limit_s=10, what="the request has a slot")
    connection.close()
    return wait_until(lambda: stack.active_requests == STREAMS, limit_s=LIMIT_S, what="its slot is free")


def run_into_stop_string(stack: RunningStack) -> float:
    text = stream(stack, prompt="Hello", max_tokens=40).text
    outcome = stream(stack, prompt="Hello", max_tokens=4000, stop=[text[-12:]])
    assert outcome.finish_reason == "stop"
    return wait_until(lambda: stack.active_requests == STREAMS, limit_s=LIMIT_S, what="its slot is free")


def run_into_deadline(stack: RunningStack) -> float:
    body = {"model": MODEL, "prompt": "Hello", "max_tokens": 4000}
    with stack.client() as client:
        answer = client.post("/v1/completions", json=body, headers={"x-request-timeout-s": "0.3"})
    assert answer.status_code == 504
    return wait_until(lambda: stack.active_requests == STREAMS, limit_s=LIMIT_S, what="its slot is free")


WAYS: dict[str, Callable[[RunningStack], float]] = {
    "disconnect, streaming": lambda stack: disconnect(stack, is_stream=True),
    "disconnect, not streaming": lambda stack: disconnect(stack, is_stream=False),
    "stop string": run_into_stop_string,
    "deadline by header": run_into_deadline,
}


@pytest.mark.parametrize("name", WAYS)
def test_a_slot_is_freed_at_once_with_64_other_streams(busy_stack: RunningStack, name: str) -> None:
    with background(busy_stack, STREAMS):  # for 40 s
        times_ms = [WAYS[name](busy_stack) * 1000 for _ in range(ROUNDS)]
    print(f"| {name} | {statistics.median(times_ms):.0f} ms | {max(times_ms):.0f} ms |")


def processes(stack: RunningStack) -> dict[str, psutil.Process]:
    triton = psutil.Process(stack.triton.pid)
    found = {"front end": psutil.Process(stack.frontend.pid), "Triton": triton}
    for child in triton.children(recursive=True):
        names = [part.split("/")[-3] for part in child.cmdline() if part.endswith("/1/model.py")]
        found |= {f"{name} stub": child for name in names}
    return found


def usage(stack: RunningStack) -> dict[str, tuple[int, int, float]]:
    """File descriptors, threads and MiB of private memory of each process."""
    return {
        name: (process.num_fds(), process.num_threads(), process.memory_full_info().uss / 2**20)
        for name, process in processes(stack).items()
    }


def abandon(stack: RunningStack, count: int) -> None:
    """Requests for 4,000 tokens whose clients disconnect as soon as they have a slot."""
    connections = [open_request(stack, stream=number % 2 == 0) for number in range(count)]
    wait_until(lambda: stack.active_requests >= count * 0.9, limit_s=30, what="most of them have slots")
    for connection in connections:
        connection.close()
    wait_until(lambda: stack.active_requests == 0, limit_s=30, what="all slots are free")
    with stack.client() as client:
        wait_until(
            lambda: 'completions_in_flight_requests{model="smollm2-135m-instruct"} 0.0' in client.get("/metrics").text,
            limit_s=30,
            what="the front end has none in flight",
        )


def pace_s(stack: RunningStack) -> float:
    return min(stream(stack, prompt="Hello", max_tokens=100).seconds for _ in range(3))


def test_a_thousand_cancelled_requests_leak_nothing(busy_stack: RunningStack) -> None:
    for _ in range(WARM_UP_WAVES):  # growth at the first loads is no leak: allocators and pools reach their size
        abandon(busy_stack, WAVE)
    before, pace_before_s = usage(busy_stack), pace_s(busy_stack)
    for _ in range(ABANDONED // WAVE):
        abandon(busy_stack, WAVE)
    after, pace_after_s = usage(busy_stack), pace_s(busy_stack)
    for name, (fds, threads, memory_mib) in after.items():
        print(
            f"| {name} | {before[name][0]} -> {fds} | {before[name][1]} -> {threads} "
            f"| {before[name][2]:.1f} -> {memory_mib:.1f} MiB |"
        )
    print(f"100 tokens: {pace_before_s * 1000:.0f} ms before, {pace_after_s * 1000:.0f} ms after")
    for name, (fds, threads, memory_mib) in after.items():
        assert fds <= before[name][0] + 8, name  # connections of this test come and go
        assert threads <= before[name][1] + 4, name  # Triton's pools grow to their size
        assert memory_mib <= before[name][2] + 32, name  # 1,000 leaked requests would be far more
    assert pace_after_s < 2 * pace_before_s + 0.5
