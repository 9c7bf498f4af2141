"""A server that stops answering, or whose stub has died, is killed; one that starts or answers is left alone."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest

from launcher.local.liveness import LivenessMonitor, StubMonitor
from launcher.triton_access import TritonAddresses
from tests.support.waiting import wait_until

PERIOD_S = 0.05


class Triton(ThreadingHTTPServer):
    """An HTTP server that answers or hangs, with the process id and the `kill` that LivenessMonitor needs."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.pid: int | None = 1
        self.may_answer = threading.Event()
        self.requests = 0
        self.kills = 0
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def kill(self) -> None:
        self.kills += 1


class _Handler(BaseHTTPRequestHandler):
    server: Triton

    def do_GET(self) -> None:
        self.server.requests += 1
        self.server.may_answer.wait(5)
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def triton() -> Iterator[Triton]:
    with Triton() as server:
        yield server
        server.may_answer.set()
        server.shutdown()


@pytest.fixture
def monitor(triton: Triton) -> Iterator[LivenessMonitor]:
    addresses = TritonAddresses(triton.server_address[1], 1)
    monitor = LivenessMonitor(triton, addresses, timeout_s=0.4, period_s=PERIOD_S)
    monitor.start()
    yield monitor
    monitor.close()


@pytest.mark.usefixtures("monitor")
def test_server_that_stops_answering_is_killed_once(triton: Triton) -> None:
    triton.may_answer.set()
    wait_until(lambda: triton.requests >= 3)
    assert triton.kills == 0
    triton.may_answer.clear()
    wait_until(lambda: triton.kills == 1)
    requests = triton.requests
    wait_until(lambda: triton.requests >= requests + 8)
    assert triton.kills == 1, "until it has answered again, it may be loading"
    triton.may_answer.set()
    requests = triton.requests
    wait_until(lambda: triton.requests >= requests + 3)
    triton.may_answer.clear()
    wait_until(lambda: triton.kills == 2)


@pytest.mark.usefixtures("monitor")
def test_server_that_has_not_answered_yet_is_left_alone(triton: Triton) -> None:
    wait_until(lambda: triton.requests >= 12)
    assert triton.kills == 0


@pytest.mark.usefixtures("monitor")
def test_new_process_gets_time_to_load(triton: Triton) -> None:
    triton.may_answer.set()
    wait_until(lambda: triton.requests >= 2)
    triton.may_answer.clear()
    triton.pid = 2
    requests = triton.requests
    wait_until(lambda: triton.requests >= requests + 12)
    assert triton.kills == 0


class ServerWithStub:
    """A process with one child that has the name and the arguments of decode's stub."""

    def __init__(self, folder: Path) -> None:
        stub = folder / "triton_python_backend_stub"
        stub.write_text("#!/bin/sh\nread line\n")
        stub.chmod(0o755)
        code = f"import subprocess, sys; subprocess.run([{str(stub)!r}, '/models/decode/1/model.py']); sys.stdin.read()"
        self._process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
        self.kills = 0
        wait_until(lambda: self.stubs and "model.py" in self.stubs[0].cmdline()[-1])

    @property
    def pid(self) -> int | None:
        return self._process.pid

    @property
    def stubs(self) -> list[psutil.Process]:
        return psutil.Process(self._process.pid).children()

    def kill(self) -> None:
        self.kills += 1
        self._process.kill()
        self._process.communicate()


def test_server_that_has_lost_a_stub_is_killed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    server = ServerWithStub(tmp_path)
    monitor = StubMonitor(server, period_s=PERIOD_S)
    monitor.start()
    try:
        with caplog.at_level(logging.ERROR):
            server.stubs[0].kill()
            wait_until(lambda: server.kills == 1)
    finally:
        monitor.close()
        if server.kills == 0:
            server.kill()
    assert "The process of Triton's model decode has died" in caplog.text
