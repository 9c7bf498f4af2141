"""A process of Triton that hangs while requests wait: the model is not ready within seconds, and ready again later.

Triton itself reports every model as ready all the while.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from launcher.local.processes import RESTART_DELAYS_S
from llm_pipeline.runtime.subprocesses import RestartBackoff
from tests.support.load import Load, completes, endings, find_process, stream
from tests.support.stack import MODEL, RunningStack, running_stack
from tests.support.waiting import wait_until

pytestmark = pytest.mark.triton

NOT_READY_S = 10.0
COMES_BACK_S = 60.0  # far more than needed: test machines are slow at times


@pytest.fixture(scope="module")
def stack(engine_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    with running_stack(
        tmp_path_factory.mktemp("hung"), engine_dir, EXECUTOR="scripted", TRITON_HANG_TIMEOUT_S="8"
    ) as running:
        running.triton.backoff = RestartBackoff(RESTART_DELAYS_S, stable_s=0.0)  # each death counts as a first one
        yield running


def is_ready(stack: RunningStack) -> bool:
    with stack.client() as client:
        return client.get("/health/ready").status_code == httpx.codes.OK


@pytest.mark.parametrize("model", ["preprocess", "decode", "postprocess"])
def test_stage_that_hangs_is_noticed_and_mended(stack: RunningStack, model: str) -> None:
    wait_until(lambda: completes(stack), limit_s=COMES_BACK_S, what="the stack answers")
    pid = stack.triton.pid
    load = Load(stack, count=4, max_tokens=2000)
    find_process(stack, f"{model} stub").send_signal(signal.SIGSTOP)
    stopped_s = time.monotonic()
    with load:
        wait_until(lambda: not is_ready(stack), limit_s=NOT_READY_S, what="the model is not ready")
        not_ready_s = time.monotonic() - stopped_s
        outcomes = load.outcomes(within_s=40)
    assert all(outcome.status == 503 for outcome in outcomes), endings(outcomes)
    wait_until(lambda: completes(stack), limit_s=COMES_BACK_S, what="an answer after the restart")
    assert stack.triton.pid != pid
    assert is_ready(stack)
    back_s = time.monotonic() - stopped_s
    print(f"| {model} hung (SIGSTOP) | not ready after {not_ready_s:.1f} s | back after {back_s:.1f} s |")


def test_engine_that_hangs_is_noticed_and_mended(engine_dir: Path, tmp_path: Path) -> None:
    with running_stack(tmp_path, engine_dir, CPU_HANG_TIMEOUT_S="12", CPU_KV_CACHE_GIB="0.5") as stack:
        wait_until(lambda: completes(stack), limit_s=COMES_BACK_S, what="the stack answers")
        pid = stack.triton.pid
        with ThreadPoolExecutor(2) as pool:
            streams = [pool.submit(stream, stack, prompt="Hello", max_tokens=2000) for _ in range(2)]
            wait_until(lambda: stack.active_requests == 2, limit_s=20, what="the requests run")
            find_process(stack, "cpu engine").send_signal(signal.SIGSTOP)
            wait_until(lambda: not is_ready(stack), limit_s=NOT_READY_S, what="the model is not ready")
            outcomes = [each.result(timeout=60) for each in streams]
        assert all(outcome.error == "engine_unavailable" for outcome in outcomes), endings(outcomes)
        wait_until(lambda: completes(stack, 20), limit_s=COMES_BACK_S, what="an answer from the next engine")
        assert stack.triton.pid == pid, "decode restarts its engine"


def test_slow_first_token_is_no_hang(engine_dir: Path, tmp_path: Path) -> None:
    """As with the prefill of a long prompt: 5 s without a token, longer than every limit."""
    with running_stack(
        tmp_path,
        engine_dir,
        EXECUTOR="scripted",
        SCRIPTED_STEPS_PER_S="0.2",
        STAGE_TIMEOUT_S="2",
        ENGINE_STALL_TIMEOUT_S="2",
        TRITON_HANG_TIMEOUT_S="3",
        TRITON_UNRESPONSIVE_TIMEOUT_S="3",
        START_TIMEOUT_S="120",
    ) as stack:
        pid = stack.triton.pid
        with Load(stack, count=2, max_tokens=1) as load:
            began_s = time.monotonic()
            while time.monotonic() - began_s < 4:
                assert is_ready(stack)
                time.sleep(0.2)
            outcomes = load.outcomes(within_s=30)
        assert all(outcome.finish_reason == "length" for outcome in outcomes), endings(outcomes)
        assert stack.triton.pid == pid


def test_long_prefill_of_the_cpu_engine_is_no_hang(cpu_stack: RunningStack) -> None:
    """The engine's steps show that it works, long before the first token."""
    with ThreadPoolExecutor(1) as pool, cpu_stack.client(timeout_s=150) as client:
        body = {"model": MODEL, "prompt": list(range(1000, 4000)), "max_tokens": 1}
        answer = pool.submit(client.post, "/v1/completions", json=body)
        while not answer.done():
            assert is_ready(cpu_stack)
            time.sleep(0.1)
        assert answer.result().status_code == httpx.codes.OK
