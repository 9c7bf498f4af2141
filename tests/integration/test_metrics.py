"""The engine's numbers on the pages of a front end of two workers, through the real Triton."""

from __future__ import annotations

import concurrent.futures
import time
from collections.abc import Iterator
from dataclasses import astuple
from pathlib import Path

import httpx
import pytest

from tests.support.endpoint_picker import REFRESH_S, PodMetrics, read
from tests.support.promtool import lint
from tests.support.stack import RunningStack, running_stack
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.triton, pytest.mark.alone]

MAX_ACTIVE = 4
REQUESTS = 10
FRESH_S = 0.1
SCRAPE_S = 0.05  # for the scrape itself, on a busy machine
TOKENS = 100
STEPS_PER_S = 50


@pytest.fixture(scope="module")
def stack(engine_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    settings = {
        "EXECUTOR": "scripted",
        "FRONTEND_WORKERS": "2",
        "SCRIPTED_MAX_ACTIVE": str(MAX_ACTIVE),
        "SCRIPTED_STEPS_PER_S": str(STEPS_PER_S),
    }
    with running_stack(tmp_path_factory.mktemp("metrics"), engine_dir, **settings) as running:
        yield running


def page_of(stack: RunningStack, path: str) -> str:
    """A page, over a connection of its own: from any worker."""
    answer = httpx.get(f"{stack.base_url}{path}", trust_env=False, headers=stack.headers)
    assert answer.status_code == 200
    return answer.text


def counts(stack: RunningStack) -> tuple[float, ...]:
    """Waiting and running requests, as an endpoint picker reads them."""
    lines = page_of(stack, "/metrics/engine").splitlines()
    return tuple(float(line.split()[-1]) for line in lines if line.startswith("nv_trt_llm_request_metrics"))


def test_an_idle_engine_has_numbers(stack: RunningStack) -> None:
    wait_until(lambda: counts(stack) == (0, 0), limit_s=10, what="numbers of an idle engine")


def test_every_worker_has_numbers_that_are_fresh(stack: RunningStack) -> None:
    with concurrent.futures.ThreadPoolExecutor(REQUESTS) as pool:
        answers = [pool.submit(stack.complete, prompt="Hello", max_tokens=TOKENS) for _ in range(REQUESTS)]
        expected = REQUESTS - MAX_ACTIVE, MAX_ACTIVE
        wait_until(lambda: counts(stack) == expected, limit_s=10, what="the load shows")
        for _ in range(8):  # any worker answers, and none has all requests
            assert counts(stack) == expected
        assert all(answer.result(60).status_code == 200 for answer in answers)
    assert wait_until(lambda: counts(stack) == (0, 0), limit_s=10, what="the end shows") < 1


def test_changes_show_within_a_tenth_of_a_second(stack: RunningStack) -> None:
    """Compares with decode's own gauge in Triton, which lags by at most 20 ms."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        delays = []
        for _ in range(5):
            answer = pool.submit(stack.complete, prompt="Hello", max_tokens=STEPS_PER_S // 2)
            wait_until(lambda: stack.active_requests == 1, limit_s=10, what="a running request")
            started_s = time.monotonic()
            wait_until(lambda: counts(stack) == (0, 1), limit_s=10, what="it shows")
            delays.append(time.monotonic() - started_s)
            assert answer.result(30).status_code == 200
            wait_until(lambda: counts(stack) == (0, 0), limit_s=10, what="its end shows")
    assert sorted(delays)[2] < FRESH_S + SCRAPE_S, delays


def test_an_endpoint_picker_sees_every_wave_of_requests(stack: RunningStack) -> None:
    """By the picker's own rule, with its period, without a key and on one connection."""
    full, rest = divmod(REQUESTS, MAX_ACTIVE)
    running = [*[MAX_ACTIVE] * full, rest]
    waves = {(active, REQUESTS - sum(running[: number + 1])) for number, active in enumerate(running)}
    with httpx.Client(trust_env=False) as client, concurrent.futures.ThreadPoolExecutor(REQUESTS) as pool:

        def scrape() -> PodMetrics:
            return read(client.get(f"{stack.base_url}/metrics/engine").raise_for_status().text)

        wait_until(lambda: scrape().running == 0, limit_s=10, what="an idle engine")
        answers = [pool.submit(stack.complete, prompt="Hello", max_tokens=TOKENS) for _ in range(REQUESTS)]
        seen, took_s = set(), []
        while not all(answer.done() for answer in answers):
            started_s = time.monotonic()
            metrics = scrape()
            took_s.append(time.monotonic() - started_s)
            seen.add((metrics.running, metrics.waiting))
            time.sleep(max(0.0, REFRESH_S - took_s[-1]))  # the picker's ticker
        assert all(answer.result().status_code == 200 for answer in answers)
        print(f"{len(took_s)} scrapes, median {1000 * sorted(took_s)[len(took_s) // 2]:.1f} ms")
        assert waves <= seen
        assert wait_until(lambda: scrape().running == 0, limit_s=10, what="the end shows") < FRESH_S + SCRAPE_S


def test_an_endpoint_picker_finds_all_of_an_engine_with_a_cache(cpu_stack: RunningStack) -> None:
    """Block size and number are what its producer of prefixes tunes itself by."""
    metrics = read(page_of(cpu_stack, "/metrics/engine"))
    assert None not in astuple(metrics)
    assert metrics.kv_usage is not None
    assert 0 <= metrics.kv_usage <= 1
    assert min(metrics.block_tokens or 0, metrics.blocks or 0) > 0


def test_pages_of_a_loaded_front_end_are_clean(stack: RunningStack) -> None:
    assert stack.complete(prompt="Hello", max_tokens=5).status_code == 200
    for path in ("/metrics", "/metrics/engine"):
        assert lint(page_of(stack, path).encode()) == ""


def test_triton_has_the_families_of_the_engine(stack: RunningStack) -> None:
    assert stack.decode_metric("decode_max_active_requests") == MAX_ACTIVE
    page = httpx.get(f"{stack.triton_metrics_url}/metrics", trust_env=False).text
    assert f'nv_trt_llm_request_metrics{{model="decode",request_type="max"}} {MAX_ACTIVE}\n' in page
    assert "decode_engine{" not in page
    assert "nv_trt_llm_kv_cache_block_metrics{" not in page  # the scripted executor has no cache
