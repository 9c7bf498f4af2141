"""SIGKILL of the process that runs the engine: what clients see, what the launcher does, and the time of a restart."""

from __future__ import annotations

import subprocess
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any

import httpx
import psutil

from launcher.gpu.server_group import DEAD_STUB_STATUS
from scripts.prove_on_gpu.completions import Completions
from scripts.prove_on_gpu.context import Context
from scripts.prove_on_gpu.outcome import Outcome, StepFailedError, Table
from scripts.prove_on_gpu.server import Server

_STREAMS = 4
_END_LIMIT_S = 90.0  # for the streams and the launcher to end
_LEFTOVER_S = 10.0


def run(context: Context) -> Outcome:
    """Fails if a stream hangs or ends as if it were complete, if the launcher stays, or if the restart fails."""
    server = context.server
    assert server is not None
    below = server.processes()
    kind, worker = server.worker()
    with ThreadPoolExecutor(_STREAMS) as pool:
        streams = [pool.submit(_stream_to_its_end, server, number) for number in range(_STREAMS)]
        _wait_until_active(server, context)
        killed = time.monotonic()
        worker.kill()
        endings = [_ending(stream) for stream in streams]
    ended_s = time.monotonic() - killed
    status = _launcher_status(server)
    exit_s = time.monotonic() - killed
    _, leftover = psutil.wait_procs(below, timeout=_LEFTOVER_S)
    leftover_names = [process.name() for process in leftover]
    for process in leftover:
        process.kill()
    server.restart()
    restart_s = server.wait_until_ready()
    with Completions(server) as completions:
        completions.choice(prompt="Once upon a time", max_tokens=8)
    data = {
        "killed": kind,
        "endings": endings,
        "streams_ended_s": ended_s,
        "launcher_status": status,
        "launcher_exit_s": exit_s,
        "leftover": leftover_names,
        "restart_s": restart_s,
    }
    rows: list[tuple[str, ...]] = [(name, _text(value)) for name, value in data.items()]
    summary = f"{kind} killed: streams ended after {ended_s:.1f} s, launcher exited after {exit_s:.1f} s, "
    outcome = Outcome(summary + f"ready again {restart_s:.1f} s later", (Table(("what", "value"), rows),), data)
    if problem := _problem(endings, status, leftover_names):
        raise StepFailedError(problem, outcome)
    return outcome


def _problem(endings: list[str], status: int | None, leftover: list[str]) -> str | None:
    if any(ending.startswith(("complete", "hangs")) for ending in endings):
        return f"Streams of a dead engine must end with an error: {', '.join(endings)}."
    if status != DEAD_STUB_STATUS:
        return f"launcher.gpu exited with status {status} after the death; expected {DEAD_STUB_STATUS}."
    return f"Processes were left behind: {', '.join(leftover)}." if leftover else None


def _stream_to_its_end(server: Server, number: int) -> str:
    try:
        with (
            Completions(server, timeout_s=_END_LIMIT_S) as completions,
            completions.stream(
                prompt=f"Story {number}: once upon a time", max_tokens=server.longest_completion, ignore_eos=True
            ) as events,
        ):
            last = next(iter(deque(events, maxlen=1)), {})
    except (httpx.HTTPError, StepFailedError) as error:
        return f"error: {type(error).__name__}: {error}"
    return f"error event: {last['error']['code']}" if "error" in last else f"complete: {last}"


def _ending(stream: Future[str]) -> str:
    try:
        return stream.result(_END_LIMIT_S)
    except FutureTimeoutError:
        return f"hangs: no end within {_END_LIMIT_S:.0f} s"


def _wait_until_active(server: Server, context: Context) -> None:
    while server.active_requests() < _STREAMS:
        time.sleep(min(0.02, context.left_s()))


def _launcher_status(server: Server) -> int | None:
    try:
        return server.launcher.wait(_END_LIMIT_S)
    except subprocess.TimeoutExpired:
        server.launcher.terminate()
        return None


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.1f} s"
    return "; ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)
