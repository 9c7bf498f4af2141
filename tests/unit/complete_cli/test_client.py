"""What the program makes of a server's answers, slow and damaged ones too."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from complete_cli import client
from complete_cli.client import CompletionError, Endpoint, UnreachableError

_JSON = "application/json"
_EVENTS = "text/event-stream"


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@contextmanager
def server(content_type: str, body: bytes, *, after: threading.Event | None = None) -> Iterator[Endpoint]:
    """Answers every request with `body`, when `after` is set."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            if after is not None:
                after.wait(30)
            self.send_response(200)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            with suppress(OSError):  # who gave up is not there any more
                self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        threading.Thread(target=listening.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield Endpoint(f"http://127.0.0.1:{listening.server_port}/v1", None)
        finally:
            if after is not None:
                after.set()
            listening.shutdown()


def test_a_whole_answer_may_take_longer_than_a_stream_may_be_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is sent before a whole answer is made; a stream has comments while it waits."""
    monkeypatch.setattr(client, "_SILENCE_LIMIT_S", 0.1)
    made = threading.Event()
    timer = threading.Timer(0.6, made.set)
    timer.start()
    with server(_JSON, b'{"choices": []}', after=made) as endpoint:
        assert list(endpoint.complete({"prompt": "Hi", "stream": False})) == [{"choices": []}]


def test_a_silent_stream_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_SILENCE_LIMIT_S", 0.1)
    with server(_EVENTS, b"", after=threading.Event()) as endpoint, pytest.raises(UnreachableError):
        list(endpoint.complete({"prompt": "Hi", "stream": True}))


@pytest.mark.parametrize("data", [b"<html>", b"[1]", b'"text"', b"", b'{"id": 1}'])
def test_an_event_that_is_no_chunk_is_an_error_in_words(data: bytes) -> None:
    body = b"data: " + data + b"\n\ndata: [DONE]\n\n"
    with server(_EVENTS, body) as endpoint, pytest.raises(CompletionError, match="not as this API does"):
        list(endpoint.complete({"prompt": "Hi", "stream": True}))


def test_a_whole_answer_without_choices_is_an_error_in_words() -> None:
    with server(_JSON, b'{"id": 1}') as endpoint, pytest.raises(CompletionError, match="not as this API does"):
        list(endpoint.complete({"prompt": "Hi", "stream": False}))


def test_a_stream_ends_with_its_last_event() -> None:
    with server(_EVENTS, b': hello\n\ndata: {"choices": []}\n\ndata: [DONE]\n\n') as endpoint:
        assert list(endpoint.complete({"prompt": "Hi", "stream": True})) == [{"choices": []}]
