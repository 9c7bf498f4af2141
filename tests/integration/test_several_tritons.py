"""Two Tritons behind a front end of two workers: load is shared, and only the requests of a dead Triton fail.

A second front end, on the same Tritons, selects them by the beginnings of prompts.

The tests share the processes and run in order."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx
import pytest

from launcher.local import triton_wheel
from launcher.local.processes import ChildProcess
from launcher.ports import free_ports
from launcher.settings import StackSettings
from tests.support.stack import API_KEY, MODEL
from tests.support.waiting import wait_until

pytestmark = pytest.mark.triton

WORKERS = 2
TOKENS = 100
# One worker: its page of metrics is up to date as soon as a request has ended.
BY_PREFIX = {"POOL_POLICY": "prefix", "FRONTEND_WORKERS": "1", "IDLE_PROBE_INTERVAL_S": "600"}
LONG = 1000  # 5 s at 200 tokens a second: seen to be under way, and over within the front end's drain
STREAMS = 16
CONVERSATIONS = 16  # that all have the same home is less likely than 1 in 30,000
START_LIMIT_S = 60.0
CLOSING_S = 1.0  # until the last connection to a process that was killed is seen to be gone


@dataclass(frozen=True)
class Tritons:
    """The processes, and requests to the front end."""

    tritons: dict[str, ChildProcess]  # by gRPC address
    front_end: ChildProcess
    base_url: str

    def metric(self, name: str, endpoint: str) -> float:
        return _sum_of(self.page(), f"completions_endpoint_{name}{{", f'endpoint="{endpoint}"')

    def selections(self, reason: str) -> float:
        return _sum_of(self.page(), "completions_endpoint_selections_total{", f'reason="{reason}"')

    def page(self) -> str:
        return httpx.get(f"{self.base_url}/metrics", trust_env=False).text

    def requests(self) -> list[float]:
        page = self.page()
        start = "completions_endpoint_requests_total{"
        return [_sum_of(page, start, f'endpoint="{endpoint}"') for endpoint in self.tritons]

    def is_admitted(self, endpoint: str) -> bool:
        """Whether requests may go to this Triton."""
        return self.metric("ejected", endpoint) == 0

    def is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.base_url}/health/ready", trust_env=False).status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    def client(self) -> httpx.AsyncClient:
        """Opens a connection for each request, so that all workers get some."""
        return httpx.AsyncClient(
            base_url=self.base_url,
            headers={"Authorization": f"Bearer {API_KEY}"},
            timeout=60,
            trust_env=False,
            limits=httpx.Limits(max_keepalive_connections=0),
        )


def _sum_of(page: str, start: str, label: str) -> float:
    lines = (line for line in page.splitlines() if line.startswith(start) and label in line)
    return sum(float(line.split()[-1]) for line in lines)


@pytest.fixture(scope="module")
def tritons(engine_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tritons]:
    folder = tmp_path_factory.mktemp("tritons")
    backends = triton_wheel.prepare_backends(folder)
    ports = free_ports(2 * 3)
    children = {}
    for number in range(2):
        http, grpc, metrics = ports[3 * number : 3 * number + 3]
        settings = StackSettings(
            executor="scripted", triton_http_port=http, triton_grpc_port=grpc, triton_metrics_port=metrics
        )
        children[f"127.0.0.1:{grpc}"] = ChildProcess(
            f"Triton {number}",
            triton_wheel.tritonserver_command(settings, backends),
            triton_wheel.environment(settings, engine_dir),
            folder / f"triton-{number}.log",
            stop_timeout_s=20,
        )
    try:
        for child in children.values():
            child.start()
        with running_front_end(children, folder / "frontend.log") as running:
            yield running
    finally:
        for child in children.values():
            child.stop()
            child.kill()


@pytest.fixture(scope="module")
def by_prefix(tritons: Tritons, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tritons]:
    log = tmp_path_factory.mktemp("by-prefix") / "frontend.log"
    with running_front_end(tritons.tritons, log, **BY_PREFIX) as running:
        yield running


@contextmanager
def running_front_end(tritons: dict[str, ChildProcess], log: Path, **settings: str) -> Iterator[Tritons]:
    """Runs a front end on started Tritons, and waits until it has admitted all of them."""
    (port,) = free_ports(1)
    environment = {
        **{name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ},
        **{"PORT": str(port), "API_KEY": API_KEY, "MODEL_NAME": MODEL},
        **{"TRITON_GRPC_URL": ", ".join(tritons), "FRONTEND_WORKERS": str(WORKERS)},
        **settings,
    }
    front_end = ChildProcess("front end", [sys.executable, "-m", "frontend"], environment, log, stop_timeout_s=40)
    running = Tritons(tritons, front_end, f"http://127.0.0.1:{port}")
    try:
        front_end.start()
        wait_until(running.is_ready, limit_s=START_LIMIT_S, what="a ready front end")
        for endpoint in tritons:
            wait_until(partial(running.is_admitted, endpoint), limit_s=START_LIMIT_S, what="both in")
        yield running
    finally:
        front_end.stop()
        front_end.kill()


@dataclass(frozen=True)
class Outcome:
    """The outcome of one stream."""

    started_s: float
    status: int
    text: str

    @property
    def is_served(self) -> bool:
        return self.status == httpx.codes.OK and '"error"' not in self.text

    @property
    def is_whole(self) -> bool:
        return self.text.count('"finish_reason":"length"') == 1 and self.text.endswith("data: [DONE]\n\n")

    @property
    def is_named_failure(self) -> bool:
        codes = ('"code":"service_unavailable"', '"code":"engine_unavailable"')
        is_late = self.status == httpx.codes.OK and self.text.endswith("data: [DONE]\n\n")
        return (self.status == httpx.codes.SERVICE_UNAVAILABLE or is_late) and any(code in self.text for code in codes)


async def stream(client: httpx.AsyncClient, tokens: int = TOKENS, prompt: str = "Hello") -> Outcome:
    body = {"model": MODEL, "prompt": prompt, "max_tokens": tokens, "stream": True}
    started_s = time.monotonic()
    answer = await client.post("/v1/completions", json=body)
    return Outcome(started_s, answer.status_code, answer.text)


async def test_both_tritons_get_a_share_of_the_load(tritons: Tritons) -> None:
    before = tritons.requests()
    async with tritons.client() as client:
        outcomes = await asyncio.gather(*(stream(client) for _ in range(STREAMS)))
    assert all(outcome.is_served and outcome.is_whole for outcome in outcomes)
    wait_until(lambda: sum(tritons.requests()) >= sum(before) + STREAMS, limit_s=10, what="all counted")
    shares = [after - had for after, had in zip(tritons.requests(), before, strict=True)]
    assert min(shares) >= STREAMS / 2 - WORKERS


async def test_only_the_requests_of_a_killed_triton_fail_and_it_is_used_again(tritons: Tritons) -> None:
    (victim, child), (survivor, _) = tritons.tritons.items()
    is_over = False

    async def keep_asking(client: httpx.AsyncClient) -> list[Outcome]:
        outcomes = []
        while not is_over:
            outcomes.append(await stream(client))
        return outcomes

    async with tritons.client() as client:
        askers = [asyncio.create_task(keep_asking(client)) for _ in range(STREAMS)]
        await until(lambda: tritons.metric("outstanding_requests", victim) > 0)
        child.kill()
        await until(lambda: not child.is_alive)
        dead_s = time.monotonic()
        await until(lambda: tritons.metric("ejected", victim) == WORKERS)
        assert tritons.is_ready()
        served_before = tritons.metric("requests_total", survivor)
        await until(lambda: tritons.metric("requests_total", survivor) > served_before + STREAMS)

        child.start()
        await until(lambda: tritons.metric("ejected", victim) == 0)
        back_s = time.monotonic() - dead_s
        served_before = tritons.metric("requests_total", victim)
        await until(lambda: tritons.metric("requests_total", victim) > served_before)
        is_over = True
        outcomes = [outcome for part in await asyncio.gather(*askers) for outcome in part]
    failed = [outcome for outcome in outcomes if not outcome.is_served]
    print(f"{len(failed)} of {len(outcomes)} failed; back after {back_s:.1f} s, its start included")
    assert all(outcome.is_whole for outcome in outcomes if outcome.is_served)
    assert all(outcome.is_named_failure for outcome in failed), [outcome.text[-300:] for outcome in failed]
    assert len(failed) <= STREAMS
    assert all(outcome.started_s < dead_s + CLOSING_S for outcome in failed)


async def until(condition: Callable[[], object]) -> None:
    """wait_until on a thread, so that the streams of the test go on."""
    await asyncio.to_thread(wait_until, condition, limit_s=START_LIMIT_S, what="see the traceback")


async def homes(tritons: Tritons) -> list[str]:
    """The Tritons that complete the prompts of several conversations, one after the other."""
    found: list[str] = []
    before = tritons.requests()
    async with tritons.client() as client:
        for number in range(CONVERSATIONS):
            prompt = f"Conversation {number}. " + "You are a helpful assistant. " * 50
            assert (await stream(client, tokens=1, prompt=prompt)).is_whole
            after = tritons.requests()
            counts = zip(tritons.tritons, before, after, strict=True)
            found += [endpoint for endpoint, had, has in counts for _ in range(int(has - had))]
            before = after
    return found


async def test_prompts_with_the_same_beginning_meet_in_one_triton(by_prefix: Tritons) -> None:
    before = await homes(by_prefix)
    assert len(before) == CONVERSATIONS
    assert set(before) == set(by_prefix.tritons), "both are used"
    assert await homes(by_prefix) == before
    assert by_prefix.selections("prefix") == 2 * CONVERSATIONS
    assert by_prefix.selections("overflow") == 0


async def test_prefixes_of_a_killed_triton_move_and_come_back(by_prefix: Tritons) -> None:
    (victim, child), (survivor, _) = by_prefix.tritons.items()
    before = await homes(by_prefix)
    child.kill()
    await until(lambda: not child.is_alive)
    await until(lambda: by_prefix.metric("ejected", victim) == 1)
    assert await homes(by_prefix) == [survivor] * CONVERSATIONS
    child.start()
    await until(lambda: by_prefix.metric("ejected", victim) == 0)
    assert await homes(by_prefix) == before


async def test_the_front_end_drains_the_streams_of_all_workers(tritons: Tritons) -> None:
    async with tritons.client() as client:
        streams = [asyncio.create_task(stream(client, LONG)) for _ in range(STREAMS)]
        await until(lambda: sum(tritons.metric("outstanding_requests", at) for at in tritons.tritons) >= STREAMS)
        await asyncio.to_thread(tritons.front_end.stop)
        outcomes = await asyncio.gather(*streams)
    assert all(outcome.is_served and outcome.is_whole for outcome in outcomes)
    assert not tritons.front_end.is_alive
