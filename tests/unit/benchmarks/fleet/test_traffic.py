"""The clients of a proof: what they record, and when."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from benchmarks.fleet.texts import Task
from benchmarks.fleet.traffic import Outcome, Traffic
from tests.support.http_server import LOOPBACK, QuietLog, serving
from tests.support.waiting import wait_until

TASK = Task("Hello", 1, " there")
TOKEN = b'data: {"choices": [{"text": " there", "finish_reason": "length"}], "usage": {"completion_tokens": 1}}\n\n'


class Server(ThreadingHTTPServer):
    """Cuts its first stream, and completes later ones when `is_released`."""

    def __init__(self) -> None:
        super().__init__(LOOPBACK, _Handler)
        self.requests = 0
        self.is_released = threading.Event()


class _Handler(QuietLog, BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        self.server.requests += 1
        is_first = self.server.requests == 1
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", "1000")  # more than is sent: the connection's end is a break
        self.end_headers()
        self.wfile.write(b"data: " if is_first else TOKEN)
        self.wfile.flush()
        if not is_first:
            self.server.is_released.wait(20)
            self.wfile.write(b"data: [DONE]\n\n".ljust(1000 - len(TOKEN)))


def test_a_cut_stream_counts_when_it_is_cut_and_its_new_request_is_reported_later() -> None:
    """A new request may last into a later phase, in which nothing may be cut."""
    server = Server()
    with serving(server) as url:
        traffic = Traffic({"gateway": url}, "model")
        traffic.start()
        try:
            traffic.set_clients([(1, [TASK])])
            wait_until(lambda: server.requests == 2, what="a new request")
            (sample,) = traffic.samples
            assert (sample.outcome, sample.is_mended) == (Outcome.CUT, None)
        finally:
            server.is_released.set()
            traffic.close()
        assert sample.is_mended is True
        assert {later.outcome for later in traffic.samples[1:]} <= {Outcome.WHOLE}
