"""`complete chat` as a program: the request that it sends, what it prints, and its exit statuses."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from complete_cli.cli import main
from tests.support.http_server import LOOPBACK, QuietLog, serving

CALL = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'}}
MESSAGE = {"role": "assistant", "content": "Snow.", "reasoning_content": "It is Oslo."}


@contextmanager
def running(message: dict[str, Any] | None = None, status: int = 200) -> Iterator[list[tuple[str, Any]]]:
    """A chat server whose answers are `message`. Yields the paths and bodies of its requests, its address first."""
    received: list[tuple[str, Any]] = []

    class Handler(QuietLog, BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer(200, {"data": [{"id": "small"}]})

        def do_POST(self) -> None:
            received.append((self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
            choice = {"index": 0, "message": message or MESSAGE, "text": "", "finish_reason": "stop"}
            body = {"choices": [choice]} if status == 200 else {"error": {"message": "This model cannot chat."}}
            self.answer(status, body)

        def answer(self, status: int, body: Any) -> None:
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    with serving(ThreadingHTTPServer(LOOPBACK, Handler)) as url:
        received.append((f"{url}/openai/v1", None))
        yield received


@pytest.fixture(autouse=True)
def own_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(), isatty=lambda: False))


def status_of(received: list[tuple[str, Any]], *words: str) -> int:
    try:
        main(["chat", "--base-url", received[0][0], *words])
    except SystemExit as exit_info:
        return int(exit_info.code or 0)
    return 0


def test_one_answer(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """The options and fields of `complete`, in chat's request."""
    with running() as received:
        words = ("Weather?", "--no-stream", "--system", "Be brief.", "-n", "9", "-t", "0", "--set", "top_logprobs=2")
        assert status_of(received, *words) == 0
    assert received[1:] == [
        (
            "/openai/v1/chat/completions",
            {
                "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Weather?"}],
                "stream": False,
                "max_completion_tokens": 9,
                "temperature": 0.0,
                "top_logprobs": 2,
                "model": "small",
            },
        )
    ]
    captured = capfdbinary.readouterr()
    assert captured.out == b"Snow.\n"
    assert captured.err.startswith(b"It is Oslo.\n")


def test_quiet_answer_is_all_there_is(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    with running() as received:
        assert status_of(received, "Weather?", "--no-stream", "--quiet") == 0
    assert capfdbinary.readouterr() == (b"Snow.\n", b"")


def test_tool_calls_are_printed_and_saved(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    tools = [{"type": "function", "function": {"name": "get_weather"}}]
    (tmp_path / "tools.json").write_text(json.dumps(tools))
    with running({"role": "assistant", "content": None, "tool_calls": [CALL]}) as received:
        words = ("Weather?", "--no-stream", "-q", "--tools", "tools.json", "--save", "talk.json")
        assert status_of(received, *words) == 0
        assert status_of(received, "And now?", "--no-stream", "-q", "--load", "talk.json", "--json") == 0
    calls, whole = capfdbinary.readouterr().out.decode().splitlines()
    assert calls == 'get_weather({"city": "Oslo"})'
    assert json.loads(whole)["choices"][0]["message"]["tool_calls"] == [CALL]
    body = received[2][1]
    assert [message["role"] for message in body["messages"]] == ["user", "assistant", "user"]
    assert body["tools"] == tools


def test_message_comes_from_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b"Hi\n"), isatty=lambda: False))
    with running() as received:
        assert status_of(received, "--no-stream") == 0
    assert received[1][1]["messages"] == [{"role": "user", "content": "Hi"}]


def test_terminal_begins_a_conversation(
    monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    lines = iter(["Hi", "/exit"])
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(), isatty=lambda: True))
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    with running() as received:
        assert status_of(received, "--no-stream", "-q") == 0
        assert status_of(received, "--json") == 2
    captured = capfdbinary.readouterr()
    assert captured.out == b"Snow.\n"
    assert b"--json is for one answer" in captured.err


def test_rejection_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with running(status=400) as received:
        assert status_of(received, "Hi") == 1
    assert capsys.readouterr().err == "error: This model cannot chat.\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("Hi", "--load", "none.json"), "none.json cannot be read"),
        (("Hi", "--tools", "none.json"), "none.json cannot be read"),
        (("Hi", "--file", "none.txt"), "not both"),
    ],
)
def test_invalid_usage_is_status_2(words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of([("http://127.0.0.1:9/v1", None)], *words) == 2
    assert message in capsys.readouterr().err


def test_prompt_that_is_the_word_chat_needs_two_hyphens() -> None:
    with running() as received, pytest.raises(SystemExit):
        main(["--base-url", received[0][0], "--no-stream", "--model", "small", "--", "chat"])
    assert [path for path, _ in received[1:]] == ["/openai/v1/completions"]
