"""Several workers as one program: they start together, are restarted, and end together. Without Triton."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from frontend.multiprocess.supervisor import listening_sockets
from tests.support.keys import bearer, write_keys

KEY = "secret-key"
WORKERS = 2
LIMIT_S = 60.0


class FrontEnd:
    """A running front end of several workers; its log is JSON lines."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self.process = process
        self.url = f"http://127.0.0.1:{port}"
        self._log = log

    def workers(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children()

    def lines(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self._log.read_text().splitlines()]

    def events(self, name: str) -> list[dict[str, object]]:
        return [line for line in self.lines() if line["event"] == name]

    def get(self, path: str, *, key: str = KEY) -> httpx.Response:
        """Requests a path, from any worker."""
        return httpx.get(self.url + path, timeout=10, trust_env=False, headers=bearer(key))

    def requests_of_all(self) -> float:
        lines = self.get("/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith("completions_requests_total"))


def until(condition: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline_s, what
        time.sleep(0.02)


def command_environment(**values: str) -> dict[str, str]:
    inherited = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    settings = {"API_KEY": KEY, "TRITON_GRPC_URL": "127.0.0.1:1", "LOG_FORMAT": "json", "LOG_LEVEL": "info"}
    return {**inherited, **settings, "FRONTEND_WORKERS": str(WORKERS), **values}


@contextmanager
def front_end(tmp_path: Path, **values: str) -> Iterator[FrontEnd]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path / "log"
    environment = command_environment(PORT=str(port), TMPDIR=str(tmp_path), **values)
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "frontend"], env=environment, stderr=file, start_new_session=True
        )
    running = FrontEnd(process, port, log)
    try:
        until(lambda: len(running.events("Application startup complete.")) == WORKERS, "a start")
        yield running
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_workers_serve_count_restart_and_end_as_one_program(tmp_path: Path) -> None:
    """One test of the whole lifetime, as each start takes seconds: serving, metrics, a killed worker, the end."""
    with front_end(tmp_path) as running:
        assert running.get("/health/live").status_code == 200
        assert running.get("/health/ready").status_code == 503
        for _ in range(10):  # new connections, so both workers see some
            assert httpx.post(running.url + "/v1/completions", trust_env=False).status_code == 401
        until(lambda: running.requests_of_all() == 10, "the sum of both")
        assert {line["worker"] for line in running.events("request")} == set(range(WORKERS))

        victim = running.workers()[0]
        victim.kill()
        for _ in range(10):  # connections to the socket of the dead worker wait for its replacement
            assert running.get("/health/live").status_code == 200
        until(lambda: len(running.workers()) == WORKERS and victim not in running.workers(), "a replacement")
        assert running.requests_of_all() == 10

        workers = running.workers()
        os.killpg(running.process.pid, signal.SIGINT)  # like Ctrl-C in a terminal: to all processes
        assert running.process.wait(LIMIT_S) == 0
        assert not any(worker.is_running() for worker in workers)
        assert len(running.events("draining")) == WORKERS
    assert list(tmp_path.glob("triton-completions-*")) == []


def test_every_worker_reads_the_keys_file_again_and_revokes_its_keys(tmp_path: Path) -> None:
    keys = write_keys(tmp_path / "keys", {"name": "alice"}, {"name": "bob"})
    with front_end(tmp_path, API_KEYS_FILE=str(keys)) as running:
        statuses = {running.get("/v1/models", key="alice").status_code for _ in range(10)}
        assert statuses == {200}
        write_keys(keys, {"name": "bob"})
        until(lambda: len(running.events("api_keys_reloaded")) == WORKERS, "both workers have read the file")
        assert {running.get("/v1/models", key="alice").status_code for _ in range(10)} == {401}
        keys.unlink()
        until(lambda: len(running.events("api_keys_revoked")) == WORKERS, "both workers have noticed that it is gone")
        assert {running.get("/v1/models", key="bob").status_code for _ in range(10)} == {401}
        assert running.get("/v1/models", key=KEY).status_code == 200


def test_workers_of_a_killed_supervisor_end(tmp_path: Path) -> None:
    with front_end(tmp_path) as running:
        workers = running.workers()
        running.process.kill()
        _gone, alive = psutil.wait_procs(workers, timeout=LIMIT_S)
        assert not alive


@pytest.mark.parametrize(
    ("values", "reason"),
    [({"API_KEYS_FILE": "/nonexistent"}, "API_KEYS_FILE"), ({"FRONTEND_WORKERS": "many"}, "FRONTEND_WORKERS")],
    ids=["found by a worker", "found before"],
)
def test_error_at_the_start_is_reported_once(values: dict[str, str], reason: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "frontend"],
        env=command_environment(PORT="0", **values),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.count(reason) == 1
    assert "Traceback" not in done.stderr


def test_port_in_use_is_reported_although_workers_share_theirs() -> None:
    held = listening_sockets("127.0.0.1", 0, WORKERS)
    try:
        port = held[0].getsockname()[1]
        assert {listener.getsockname()[1] for listener in held} == {port}
        done = subprocess.run(
            [sys.executable, "-m", "frontend"],
            env=command_environment(PORT=str(port)),
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
    finally:
        for listener in held:
            listener.close()
    assert done.returncode == 1
    assert done.stderr == f"The front end cannot listen on 127.0.0.1:{port} (HOST, PORT): Address already in use\n"
