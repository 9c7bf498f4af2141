"""The program of `helm test`, against a server of this test."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from scripts.chart_files import CHART
from tests.support.chart import documents, only, pod_specs
from tests.support.http_server import LOOPBACK, QuietLog, serving

PROGRAM = CHART / "files" / "smoke.py"
KEY = "sk-test"


class Handler(QuietLog, BaseHTTPRequestHandler):
    ready_status = 200

    def do_GET(self) -> None:
        self._answer(self.ready_status if self.path == "/health/ready" else 404, {})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        is_valid = self.path == "/v1/completions" and body["model"] == "llama" and body["max_tokens"] == 4
        is_allowed = self.headers.get("Authorization") == f"Bearer {KEY}"
        self._answer(200 if is_valid and is_allowed else 401, {"usage": {"completion_tokens": 4}})

    def _answer(self, status: int, document: dict[str, object]) -> None:
        content = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@contextmanager
def server(ready_status: int = 200) -> Iterator[int]:
    handler = type("Ready", (Handler,), {"ready_status": ready_status})
    running = ThreadingHTTPServer(LOOPBACK, handler)
    with serving(running):
        yield running.server_port


def smoke(port: int, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(PROGRAM), "127.0.0.1", str(port), "llama"],
        env={"PATH": os.environ["PATH"], **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_ready_service_that_completes_passes() -> None:
    with server() as port:
        run = smoke(port, API_KEY=KEY, NEEDS_KEY="1")
    assert (run.returncode, run.stdout) == (0, "Ready, and completed a prompt: 4 tokens.\n")


def test_without_a_key_readiness_alone_is_checked() -> None:
    with server() as port:
        run = smoke(port, NEEDS_KEY="1")
    assert run.returncode == 0
    assert "no completion was requested" in run.stdout


def test_a_refused_completion_fails() -> None:
    with server() as port:
        run = smoke(port, API_KEY="sk-other")
    assert run.returncode == 1
    assert run.stdout.startswith("Failed: /v1/completions answered 401")


def test_a_service_that_is_not_ready_fails() -> None:
    with server(503) as port:
        run = smoke(port, API_KEY=KEY)
    assert (run.returncode, run.stdout) == (1, "Failed: /health/ready answered 503: {}\n")


def test_a_closed_port_fails_with_one_line() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        run = smoke(unused.getsockname()[1])
    assert (run.returncode, len(run.stdout.splitlines()), run.stderr) == (1, 1, "")


def test_the_pod_runs_this_program_for_its_service() -> None:
    found = documents("everything-else")
    config = only(found, "ConfigMap", "test")
    assert config["data"]["smoke.py"].strip() == Path(PROGRAM).read_text(encoding="utf-8").strip()
    (container,) = pod_specs(found)["Pod"]["containers"]
    service = only(found, "Service")
    assert container["command"] == ["python", "/test/smoke.py", service["metadata"]["name"], "443", "llama"]
