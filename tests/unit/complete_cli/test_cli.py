"""Which server the command line asks, with which key, and what it says when there is no answer."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from complete_cli.cli import main
from tests.support.http_server import LOOPBACK, QuietLog, serving

_FIELDS: dict[str, dict[str, str]] = {"prompt": {}, "temperature": {}, "logprobs": {}}


class Server:
    """A completions server that requires a key, and records the keys that it is sent."""

    def __init__(self, url: str, keys: list[str | None]) -> None:
        self.url = url
        self.keys = keys


@contextmanager
def running(key: str | None = "sk-local") -> Iterator[Server]:
    keys: list[str | None] = []

    class Handler(QuietLog, BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/openai/openapi.json":
                self.answer(200, {"components": {"schemas": {"CompletionRequest": {"properties": _FIELDS}}}})
            else:
                self.answer_with_key({"data": [{"id": "small"}]})

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.answer_with_key({"choices": [{"index": 0, "text": " there", "finish_reason": "stop"}]})

        def answer_with_key(self, body: Any) -> None:
            keys.append(self.headers["Authorization"])
            if key is not None and self.headers["Authorization"] != f"Bearer {key}":
                self.answer(401, {"error": {"message": "Invalid API key.", "code": "invalid_api_key"}})
            else:
                self.answer(200, body)

        def answer(self, status: int, body: Any) -> None:
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    with serving(ThreadingHTTPServer(LOOPBACK, Handler)) as url:
        yield Server(f"{url}/openai/v1", keys)


@pytest.fixture(autouse=True)
def own_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY", "API_KEY", "RUN_DIR"):
        monkeypatch.delenv(name, raising=False)


def runs_here(server: Server, folder: str = ".run", key: str | None = "sk-local") -> None:
    """Writes what the launcher of this directory would write."""
    path = Path(folder) / "server.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"base_url": server.url, "api_key": key, "pid": os.getpid()}))
    path.chmod(0o600)


def status_of(*words: str) -> int:
    try:
        main(words)
    except SystemExit as exit_info:
        return int(exit_info.code or 0)
    return 0


def test_server_of_this_directory_is_asked_with_its_key() -> None:
    with running() as server:
        runs_here(server)
        assert status_of("Hi", "--no-stream") == 0
    assert server.keys == ["Bearer sk-local"] * 2


def test_server_of_another_run_directory_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUN_DIR", "elsewhere")
    with running() as server:
        runs_here(server, folder="elsewhere")
        assert status_of("Hi", "--no-stream") == 0


def test_key_for_another_service_in_the_environment_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-openai")
    with running() as server:
        runs_here(server)
        assert status_of("Hi", "--no-stream") == 0
    assert set(server.keys) == {"Bearer sk-local"}


def test_key_on_the_command_line_wins() -> None:
    with running("sk-mine") as server:
        runs_here(server)
        assert status_of("Hi", "--no-stream", "--api-key", "sk-mine") == 0


def test_key_of_the_environment_is_used_where_a_file_defines_the_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-mine")
    with running("sk-mine") as server:
        runs_here(server, key=None)
        assert status_of("Hi", "--no-stream") == 0


def test_stored_key_is_sent_to_its_own_address_only(capsys: pytest.CaptureFixture[str]) -> None:
    with running() as server, running() as other:
        runs_here(server)
        assert status_of("Hi", "--no-stream", "--base-url", server.url) == 0
        assert status_of("Hi", "--no-stream", "--base-url", other.url) == 1
    assert other.keys == [None]
    message = capsys.readouterr().err
    assert f"error: {other.url} requires an API key." in message
    assert ".run/api-key" in message


def test_key_that_is_not_accepted_is_reported_with_the_address(capsys: pytest.CaptureFixture[str]) -> None:
    with running() as server:
        assert status_of("Hi", "--base-url", server.url, "--api-key", "wrong") == 1
    assert f"error: {server.url} does not accept this API key" in capsys.readouterr().err


def test_missing_server_is_reported_with_the_address_and_the_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of("Hi", "--base-url", "http://127.0.0.1:9/v1") == 3
    message = capsys.readouterr().err
    assert message.startswith("error: No answer from http://127.0.0.1:9/v1 (Connection refused).")
    assert "make serve" in message
    assert "--base-url or OPENAI_BASE_URL" in message


def test_field_that_the_server_does_not_know_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with running() as server:
        runs_here(server)
        assert status_of("Hi", "--no-stream", "--set", "temprature=0", "--set", "logprobs=1") == 0
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert notes == [
        "note: The server has no field temprature, which has no effect there. Did you mean temperature?",
    ]


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of("--version") == 0
    assert capsys.readouterr().out.startswith("triton-completions 0.")


def test_timing_is_on_a_line_of_its_own(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """Where both streams are collected together, the line would be glued to the text."""
    with running() as server:
        runs_here(server)
        assert status_of("Hi", "--no-stream") == 0
    captured = capfdbinary.readouterr()
    assert captured.out == b" there"
    assert captured.err.startswith(b"\n")
