"""Responses as the client reads them, slow and malformed ones too."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from complete_cli.client import ClientTimeouts, CompletionError, ServerAddress, ServerUnreachableError
from tests.support.http_server import LOOPBACK, QuietLog, serving

_JSON = "application/json"
_EVENTS = "text/event-stream"


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@contextmanager
def server(
    content_type: str, body: bytes, *, after: threading.Event | None = None, silence_s: float = 30.0
) -> Iterator[ServerAddress]:
    """Sends `body` in response to every request, once `after` is set."""

    class Handler(QuietLog, BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            if after is not None:
                after.wait(30)
            self.send_response(200)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            with suppress(OSError):  # the client has given up and disconnected
                self.wfile.write(body)

    with serving(ThreadingHTTPServer(LOOPBACK, Handler)) as url:
        try:
            yield ServerAddress(f"{url}/v1", None, ClientTimeouts(silence_s=silence_s))
        finally:
            if after is not None:
                after.set()


def test_whole_response_may_take_longer_than_a_stream_may_be_silent() -> None:
    """Nothing is sent before a whole response is complete; a stream has comments while it waits."""
    complete = threading.Event()
    timer = threading.Timer(0.6, complete.set)
    timer.start()
    with server(_JSON, b'{"choices": []}', after=complete, silence_s=0.1) as endpoint:
        assert list(endpoint.complete({"prompt": "Hi", "stream": False})) == [{"choices": []}]


def test_silent_stream_is_abandoned() -> None:
    with (
        server(_EVENTS, b"", after=threading.Event(), silence_s=0.1) as endpoint,
        pytest.raises(ServerUnreachableError),
    ):
        list(endpoint.complete({"prompt": "Hi", "stream": True}))


@pytest.mark.parametrize("data", [b"<html>", b"[1]", b'"text"', b"", b'{"id": 1}'])
def test_event_that_is_not_a_chunk_raises(data: bytes) -> None:
    body = b"data: " + data + b"\n\ndata: [DONE]\n\n"
    with server(_EVENTS, body) as endpoint, pytest.raises(CompletionError, match="not a completions API"):
        list(endpoint.complete({"prompt": "Hi", "stream": True}))


def test_whole_response_without_choices_raises() -> None:
    with server(_JSON, b'{"id": 1}') as endpoint, pytest.raises(CompletionError, match="not a completions API"):
        list(endpoint.complete({"prompt": "Hi", "stream": False}))


def test_comments_are_ignored_and_done_ends_the_stream() -> None:
    with server(_EVENTS, b': hello\n\ndata: {"choices": []}\n\ndata: [DONE]\n\n') as endpoint:
        assert list(endpoint.complete({"prompt": "Hi", "stream": True})) == [{"choices": []}]


@pytest.mark.parametrize("line_end", ["\n", "\r\n"], ids=["LF", "CRLF"])
def test_unicode_line_separators_do_not_end_an_event(line_end: str) -> None:
    """Servers send U+2028 and U+0085 unescaped, which `str.splitlines` takes for line breaks; SSE does not."""
    text = "one\u2028two\u0085three"
    body = f'data: {{"choices": [{{"text": "{text}"}}]}}{line_end * 2}data: [DONE]{line_end * 2}'
    with server(_EVENTS, body.encode()) as endpoint:
        (chunk,) = endpoint.complete({"prompt": "Hi", "stream": True})
    assert chunk["choices"][0]["text"] == text


def test_stream_without_its_last_event_raises() -> None:
    with (
        server(_EVENTS, b'data: {"choices": []}\n\n') as endpoint,
        pytest.raises(CompletionError, match="ended before"),
    ):
        list(endpoint.complete({"prompt": "Hi", "stream": True}))
