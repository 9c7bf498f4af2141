"""Processes that die or hang and disks that fill up: every request ends, no 200 is wrong, the service recovers.

These tests print the table of docs/reliability.md (`pytest -rP`).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from launcher.local.processes import RESTART_DELAYS_S
from launcher.ports import free_ports
from llm_pipeline.executors.scripted.faults import Fault
from llm_pipeline.runtime.subprocesses import RestartBackoff
from tests.support.launcher_process import READY_LINE, read_until, start_launcher
from tests.support.load import Load, completes, endings, find_process, stream
from tests.support.stack import MODEL, RunningStack, running_stack
from tests.support.waiting import wait_until

pytestmark = pytest.mark.triton

COMES_BACK_S = 60.0  # far more than needed: test machines are slow at times
FAULT_PROMPTS = {fault: 100 + number for number, fault in enumerate(Fault)}


@pytest.fixture(scope="module")
def fault_stack(engine_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """Short timeouts, so that failures are detected soon, and scripts for a broken engine."""
    folder = tmp_path_factory.mktemp("faults")
    scripts: list[dict[str, Any]] = [
        {"prompt_ids": [prompt], "token_ids": [28, 28], "fault": fault.value} for fault, prompt in FAULT_PROMPTS.items()
    ]
    scripts.append({"prompt_ids": [99], "token_ids": [28], "stall": True})
    (folder / "scripts.json").write_text(json.dumps(scripts))
    environment = {
        "EXECUTOR": "scripted",
        "SCRIPTED_FILE": str(folder / "scripts.json"),
        "CLIENT_LEASE_TIMEOUT_S": "3",
        "TRITON_HANG_TIMEOUT_S": "4",
        "TRITON_UNRESPONSIVE_TIMEOUT_S": "8",
    }
    with running_stack(folder, engine_dir, **environment) as stack:
        for process in (stack.triton, stack.frontend):
            process.backoff = RestartBackoff(RESTART_DELAYS_S, stable_s=0.0)  # each death counts as a first one
        yield stack


def regions(stack: RunningStack) -> int:
    """Regions in /dev/shm of this stack's Triton."""
    port = stack.triton_grpc_url.rsplit(":", 1)[1]
    return len(list(Path("/dev/shm").glob(f"triton_completions_{port}_*")))


def wait_until_idle(stack: RunningStack) -> None:
    wait_until(lambda: completes(stack), limit_s=COMES_BACK_S, what="the stack answers")
    wait_until(lambda: stack.decode_metric("decode_active_requests") == 0, limit_s=30, what="the stack is idle")


def wait_until_running(stack: RunningStack, count: int) -> None:
    wait_until(
        lambda: stack.decode_metric("decode_active_requests") >= count,
        limit_s=10,
        what=f"{count} streams",
    )


def report(fault: str, seen: str, ended_s: float, back_s: float) -> None:
    print(f"| {fault} | {seen} | {ended_s:.1f} s | {back_s:.1f} s |")


@pytest.mark.parametrize("victim", ["preprocess stub", "decode stub", "postprocess stub", "Triton"])
def test_after_a_kill_every_stream_ends_and_the_service_recovers(fault_stack: RunningStack, victim: str) -> None:
    wait_until_idle(fault_stack)
    regions_before = regions(fault_stack)
    with Load(fault_stack, count=64, max_tokens=600) as load:
        wait_until_running(fault_stack, 64)
        killed = time.monotonic()
        find_process(fault_stack, victim).kill()
        outcomes = load.outcomes(within_s=30)
        ended_s = time.monotonic() - killed
    wait_until(lambda: completes(fault_stack), limit_s=COMES_BACK_S, what=f"an answer after the death of {victim}")
    report(f"kill -9 of {victim}", endings(outcomes), ended_s, time.monotonic() - killed)
    assert all(outcome.error in ("service_unavailable", "engine_unavailable") for outcome in outcomes)
    assert regions(fault_stack) == regions_before == 3  # none of the dead process is left


def test_requests_of_a_dead_front_end_are_cancelled(fault_stack: RunningStack) -> None:
    wait_until_idle(fault_stack)
    cancelled = fault_stack.decode_metric("decode_cancelled_requests_total")
    with Load(fault_stack, count=16, max_tokens=2500) as load:  # 12 s, far beyond the lease
        wait_until_running(fault_stack, 16)
        killed = time.monotonic()
        find_process(fault_stack, "front end").kill()
        outcomes = load.outcomes(within_s=30)
        ended_s = time.monotonic() - killed
        back_s = (
            wait_until(lambda: completes(fault_stack), limit_s=COMES_BACK_S, what="a new front end answers") + ended_s
        )
        wait_until(
            lambda: fault_stack.decode_metric("decode_active_requests") == 0, limit_s=15, what="decode's slots are free"
        )
        freed_s = time.monotonic() - killed
    assert all(outcome.broken for outcome in outcomes)
    assert fault_stack.decode_metric("decode_cancelled_requests_total") >= cancelled + 16
    report("kill -9 of the front end", endings(outcomes), ended_s, back_s)
    print(f"decode's slots free again {freed_s:.1f} s after the death of the front end (lease of 3 s)")


def test_a_hung_triton_is_restarted(fault_stack: RunningStack) -> None:
    wait_until_idle(fault_stack)
    pid = fault_stack.triton.pid
    with Load(fault_stack, count=8, max_tokens=2000) as load, fault_stack.client() as client:
        wait_until_running(fault_stack, 8)
        stopped = time.monotonic()
        find_process(fault_stack, "Triton").send_signal(signal.SIGSTOP)
        refused_s = wait_until(
            lambda: client.get("/health/ready").status_code == 503, limit_s=20, what="the front end is not ready"
        )
        refused = stream(fault_stack, prompt="Hello", max_tokens=2)
        assert (refused.status, refused.seconds < 5) == (503, True), refused
        outcomes = load.outcomes(within_s=40)
        ended_s = time.monotonic() - stopped
    wait_until(lambda: completes(fault_stack), limit_s=COMES_BACK_S, what="an answer after Triton has hung")
    assert fault_stack.triton.pid != pid
    assert all(outcome.error == "service_unavailable" for outcome in outcomes), endings(outcomes)
    report("Triton hung (SIGSTOP)", endings(outcomes), ended_s, time.monotonic() - stopped)
    print(f"not ready {refused_s:.1f} s after Triton was stopped")


def test_sigterm_under_load_drains_the_front_end(fault_stack: RunningStack) -> None:
    wait_until_idle(fault_stack)
    with Load(fault_stack, count=32, max_tokens=1000) as load, fault_stack.client() as client:
        wait_until_running(fault_stack, 32)
        signalled = time.monotonic()
        find_process(fault_stack, "front end").terminate()
        wait_until(lambda: client.get("/health/ready").status_code == 503, limit_s=5, what="the front end drains")
        refused = stream(fault_stack, prompt="Hello", max_tokens=2)
        assert (refused.status, refused.error) == (503, "draining")
        outcomes = load.outcomes(within_s=30)
        ended_s = time.monotonic() - signalled
    assert all(outcome.finish_reason == "length" for outcome in outcomes), endings(outcomes)
    wait_until(lambda: completes(fault_stack), limit_s=COMES_BACK_S, what="the next front end answers")
    report("SIGTERM to the front end under load", endings(outcomes), ended_s, time.monotonic() - signalled)


def test_sigterm_under_load_restarts_triton(fault_stack: RunningStack) -> None:
    """The streams end with an error at once, because Triton ends its stubs before their requests are done."""
    wait_until_idle(fault_stack)
    with Load(fault_stack, count=16, max_tokens=1000) as load:
        wait_until_running(fault_stack, 16)
        signalled = time.monotonic()
        find_process(fault_stack, "Triton").terminate()
        outcomes = load.outcomes(within_s=40)
        ended_s = time.monotonic() - signalled
    wait_until(lambda: completes(fault_stack), limit_s=COMES_BACK_S, what="the next Triton answers")
    report("SIGTERM to Triton under load", endings(outcomes), ended_s, time.monotonic() - signalled)


@pytest.mark.parametrize("fault", list(Fault))
def test_invalid_engine_output_fails_one_request(fault_stack: RunningStack, fault: Fault) -> None:
    wait_until(lambda: completes(fault_stack), limit_s=COMES_BACK_S, what="the stack answers")
    with Load(fault_stack, count=4, max_tokens=100) as load:
        outcome = stream(fault_stack, prompt=[FAULT_PROMPTS[fault]], max_tokens=6, limit_s=10)
        assert all(other.finish_reason == "length" for other in load.outcomes(within_s=20))
    print(f"| an engine that {fault.value} | {outcome.ending} | {outcome.seconds:.1f} s | at once |")
    ends_well = {Fault.FOREIGN_NUMBER: "length", Fault.AFTER_END: "stop", Fault.TOO_MANY: "length"}
    if fault in ends_well:
        assert outcome.finish_reason == ends_well[fault]
    else:
        assert outcome.error == "internal_error"


def test_a_stalled_engine_ends_the_request_at_its_deadline(fault_stack: RunningStack) -> None:
    body = {"model": MODEL, "prompt": [99], "max_tokens": 6}
    with fault_stack.client() as client:
        answer = client.post("/v1/completions", json=body, headers={"x-request-timeout-s": "0.5"})
    assert answer.status_code == 504
    wait_until(lambda: fault_stack.decode_metric("decode_active_requests") == 0, limit_s=5, what="its slot is free")
    print("| an engine that stalls | 504 deadline_exceeded | at the deadline | at once |")


# --- The CPU engine --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "hung"])
def test_a_dead_or_hung_cpu_engine_is_restarted(mortal_cpu_stack: RunningStack, number: int) -> None:
    stack = mortal_cpu_stack
    wait_until(lambda: completes(stack), limit_s=COMES_BACK_S, what="the stack answers")
    engine = find_process(stack, "cpu engine")
    # Text is checked by prefix: greedy completions are equal as far as they get.
    body: dict[str, Any] = {"prompt": "Once upon a time", "max_tokens": 2000, "temperature": 0}
    with ThreadPoolExecutor(4) as pool:
        streams = [pool.submit(stream, stack, **body) for _ in range(4)]
        wait_until_running(stack, 4)
        started = time.monotonic()
        engine.send_signal(number)
        outcomes = [each.result(timeout=60) for each in streams]
        ended_s = time.monotonic() - started
    assert all(outcome.error == "engine_unavailable" for outcome in outcomes), endings(outcomes)
    texts = sorted((outcome.text for outcome in outcomes), key=len)
    assert all(texts[-1].startswith(text) for text in texts)
    wait_until(lambda: completes(stack, 20), limit_s=COMES_BACK_S, what="an answer from the next engine")
    name = "kill -9 of the CPU engine" if number == signal.SIGKILL else "CPU engine hung (SIGSTOP, limit 3 s)"
    report(name, endings(outcomes), ended_s, time.monotonic() - started)
    assert not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE


@pytest.fixture(scope="module")
def mortal_cpu_stack(engine_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    with running_stack(
        tmp_path_factory.mktemp("mortal-cpu"), engine_dir, CPU_HANG_TIMEOUT_S="3", CPU_KV_CACHE_GIB="0.5"
    ) as stack:
        yield stack


# --- Things that are full --------------------------------------------------------------------------------------------


def test_a_full_disk_for_logs_stops_no_request(engine_dir: Path, tmp_path: Path) -> None:
    """Every write to /dev/full fails with "no space left on device"."""
    ports = free_ports(4)
    logs = tmp_path / "logs" / str(ports[0])
    logs.mkdir(parents=True)
    for name in ("triton.log", "frontend.log"):
        (logs / name).symlink_to("/dev/full")
    process = start_launcher(engine_dir, tmp_path, ports, API_KEY="k")
    try:
        read_until(process, READY_LINE)
        url, headers = f"http://127.0.0.1:{ports[0]}/v1/completions", {"Authorization": "Bearer k"}
        for body in ({"prompt": "Hello", "max_tokens": 3}, {"prompt": ""}):
            answer = httpx.post(url, json={"model": MODEL, **body}, headers=headers, timeout=20, trust_env=False)
            assert answer.status_code == (200 if body["prompt"] else 400)
    finally:
        process.terminate()
        process.communicate(timeout=60)
    assert process.returncode == 0
    print("| a full disk for logs | nothing: only log lines are lost | - | - |")


def in_own_shared_memory(mib: int) -> list[str]:
    """A command prefix that runs a program with a /dev/shm of its own of `mib` MiB."""
    mount = f"mount -t tmpfs -o size={mib}m tmpfs /dev/shm"
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-m", "sh", "-c", mount], check=False).returncode:
        pytest.skip("a small /dev/shm cannot be mounted on this machine")
    return ["unshare", "-m", "--propagation", "private", "sh", "-c", f'{mount} && exec "$@"', "sh"]


def test_too_little_shared_memory_is_reported_at_start(engine_dir: Path, tmp_path: Path) -> None:
    process = start_launcher(engine_dir, tmp_path, free_ports(4), prefix=in_own_shared_memory(32))
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "/dev/shm has 32 MiB free" in output
    assert "--shm-size" in output


def test_full_shared_memory_fails_requests_only(engine_dir: Path, tmp_path: Path) -> None:
    ports = free_ports(4)
    process = start_launcher(engine_dir, tmp_path, ports, prefix=in_own_shared_memory(128), API_KEY="k")
    url, headers = f"http://127.0.0.1:{ports[0]}/v1/completions", {"Authorization": "Bearer k"}

    def status(words: int) -> int:
        body = {"model": MODEL, "prompt": "hello " * words, "max_tokens": 3}
        return httpx.post(url, json=body, headers=headers, timeout=40, trust_env=False).status_code

    try:
        read_until(process, READY_LINE)
        assert status(1) == 200
        fill = Path(f"/proc/{process.pid}/root/dev/shm/fill")
        with pytest.raises(OSError, match="No space"):
            fill.write_bytes(bytes(128 * 2**20))
        with ThreadPoolExecutor(32) as pool:
            # The longest are refused by preprocess: 400 when they reach it.
            statuses = Counter(pool.map(status, [1, 100, 4000, 300_000] * 24))
        print(f"| full /dev/shm | {dict(statuses)} | at once | when there is room |")
        assert set(statuses) <= {200, 400, 503}
        assert statuses[200] >= 48, "what fits into the room that Triton has already is served"
        os.unlink(fill)
        wait_until(lambda: status(1) == 200, limit_s=COMES_BACK_S, what="an answer when there is room")
        wait_until(lambda: status(300_000) == 400, limit_s=COMES_BACK_S, what="a long prompt is refused for its length")
        assert status(4000) == 200
    finally:
        process.terminate()
        process.communicate(timeout=60)
