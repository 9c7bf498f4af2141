"""A server that runs and does not answer is ended; one that starts, answers or is away is left alone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from launcher.local import liveness as health_watch
from launcher.local.liveness import LivenessMonitor
from tests.support.waiting import wait_until


class Triton(ThreadingHTTPServer):
    """An HTTP server that answers, or hangs; and what LivenessMonitor needs to know of its process."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.pid: int | None = 1
        self.may_answer = threading.Event()
        self.asked = 0
        self.kills = 0
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def kill(self) -> None:
        self.kills += 1


class _Handler(BaseHTTPRequestHandler):
    server: Triton

    def do_GET(self) -> None:
        self.server.asked += 1
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
def watch(triton: Triton, monkeypatch: pytest.MonkeyPatch) -> Iterator[LivenessMonitor]:
    monkeypatch.setattr(health_watch, "_PERIOD_S", 0.05)
    watch = LivenessMonitor(triton, triton.server_address[1], limit_s=0.4)  # type: ignore[arg-type]
    yield watch
    watch.close()


def test_one_that_stops_answering_is_killed_once(triton: Triton, watch: LivenessMonitor) -> None:
    triton.may_answer.set()
    wait_until(lambda: triton.asked >= 3)
    assert triton.kills == 0
    triton.may_answer.clear()
    wait_until(lambda: triton.kills == 1)
    asked = triton.asked
    wait_until(lambda: triton.asked >= asked + 8)
    assert triton.kills == 1, "until it has answered again, it may be loading"
    triton.may_answer.set()
    asked = triton.asked
    wait_until(lambda: triton.asked >= asked + 3)
    triton.may_answer.clear()
    wait_until(lambda: triton.kills == 2)


def test_one_that_has_not_answered_yet_is_left_alone(triton: Triton, watch: LivenessMonitor) -> None:
    wait_until(lambda: triton.asked >= 12)
    assert triton.kills == 0


def test_a_new_process_has_its_time_to_load(triton: Triton, watch: LivenessMonitor) -> None:
    triton.may_answer.set()
    wait_until(lambda: triton.asked >= 2)
    triton.may_answer.clear()
    triton.pid = 2
    asked = triton.asked
    wait_until(lambda: triton.asked >= asked + 12)
    assert triton.kills == 0
