"""A stage that stops answering makes Triton restart; one that is slow, has failed, or is still loading does not."""

from __future__ import annotations

import json
import logging
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from launcher.local.stage_monitor import StageMonitor
from launcher.triton_access import TritonAddresses
from tests.support.waiting import wait_until

PERIOD_S = 0.05
TIMEOUT_S = 1.5
STAGES = ["preprocess", "decode", "postprocess"]


class Triton(ThreadingHTTPServer):
    """Stages that answer or hang, with the process id and the `kill` that the monitor needs."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.pid: int | None = 1
        self.may_answer = {stage: threading.Event() for stage in STAGES}
        self.status = 200
        self.body = b"{}"
        self.messages: dict[str, object] = {}
        self.requests: Counter[str] = Counter()
        self.kills = 0
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def let_all_answer(self) -> None:
        for event in self.may_answer.values():
            event.set()

    def kill(self) -> None:
        self.kills += 1
        self.pid = 1 + self.kills

    def has_asked(self, times: int) -> bool:
        return all(self.requests[stage] >= times for stage in STAGES)


class _Handler(BaseHTTPRequestHandler):
    server: Triton

    def do_POST(self) -> None:
        stage = self.path.split("/")[3]
        self.server.messages[stage] = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests[stage] += 1
        self.server.may_answer[stage].wait(5)
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(self.server.body)))
        self.end_headers()
        self.wfile.write(self.server.body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def triton() -> Iterator[Triton]:
    with Triton() as server:
        yield server
        server.let_all_answer()
        server.shutdown()


@pytest.fixture
def monitor(triton: Triton) -> Iterator[StageMonitor]:
    addresses = TritonAddresses(triton.server_address[1], 1)
    monitor = StageMonitor(triton, addresses, ["ensemble"], timeout_s=TIMEOUT_S, period_s=PERIOD_S)
    monitor.start()
    yield monitor
    monitor.close()


@pytest.mark.usefixtures("monitor")
@pytest.mark.parametrize("stage", STAGES)
def test_stage_that_stops_answering_makes_triton_restart_once(
    triton: Triton, stage: str, caplog: pytest.LogCaptureFixture
) -> None:
    triton.let_all_answer()
    wait_until(lambda: triton.has_asked(3))
    assert triton.kills == 0
    with caplog.at_level(logging.ERROR):
        triton.may_answer[stage].clear()
        wait_until(lambda: triton.kills == 1)
    assert f"model {stage} has not answered" in caplog.text
    requests = triton.requests[stage]
    wait_until(lambda: triton.requests[stage] >= requests + 2)
    assert triton.kills == 1, "the next process may be loading"


@pytest.mark.usefixtures("monitor")
def test_stage_that_has_not_answered_yet_is_left_alone(triton: Triton) -> None:
    wait_until(lambda: triton.has_asked(3))
    assert triton.kills == 0


@pytest.mark.usefixtures("monitor")
def test_error_is_an_answer(triton: Triton) -> None:
    triton.status = 500
    triton.let_all_answer()
    wait_until(lambda: triton.has_asked(10))
    assert triton.kills == 0


@pytest.mark.usefixtures("monitor")
def test_process_that_stays_unhealthy_makes_triton_restart(triton: Triton) -> None:
    """A suspended process, for which Triton answers: for a moment that is normal, as when it restarts the process."""
    triton.let_all_answer()
    wait_until(lambda: triton.has_asked(2))
    working, triton.body = triton.body, b'{"error":"Stub process \'decode_0_0\' is not healthy."}'
    requests = triton.requests["decode"]
    wait_until(lambda: triton.requests["decode"] >= requests + 2)
    triton.body = working
    wait_until(lambda: triton.has_asked(requests + 10))
    assert triton.kills == 0
    triton.body = b'{"error":"Stub process \'decode_0_0\' is not healthy."}'
    wait_until(lambda: triton.kills >= 1)


@pytest.mark.usefixtures("monitor")
def test_each_stage_gets_a_message_that_it_answers_at_once(triton: Triton) -> None:
    wait_until(lambda: triton.has_asked(1))
    assert triton.messages == {
        "preprocess": {"describe": True},
        "decode": {"pulse": True},
        "postprocess": {"chunk": ""},
    }
