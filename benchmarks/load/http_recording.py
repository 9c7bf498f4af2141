"""OpenAI's completions protocol on the wire: a request as bytes, and an answer's events from recorded bytes.

Only what a benchmark needs, written out by hand, because an HTTP library would cost more than what it measures.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import orjson

from benchmarks.load.job import Timeline

_HEAD_END = b"\r\n\r\n"
_LAST_CHUNK = b"\r\n0\r\n\r\n"
_OK = 200

Received = Sequence[tuple[float, bytes]]  # when, what


@dataclass(frozen=True)
class Endpoint:
    """An OpenAI-compatible server: `base_url` ends where /completions begins."""

    base_url: str
    model: str
    api_key: str | None = None

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.base_url)
        if parts.scheme != "http" or parts.hostname is None:
            raise ValueError(f"{self.base_url!r} is not a base URL like http://127.0.0.1:9000/v1 (no https here).")
        return parts.hostname, parts.port or 80

    def request(self, prompt: str, max_tokens: int, *, is_streamed: bool) -> bytes:
        """One greedy completion as the bytes of an HTTP request."""
        body: dict[str, Any] = {"model": self.model, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0}
        if is_streamed:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        content = orjson.dumps(body)
        parts = urlsplit(self.base_url)
        authorization = f"Authorization: Bearer {self.api_key}\r\n" if self.api_key else ""
        head = (
            f"POST {parts.path.rstrip('/')}/completions HTTP/1.1\r\nHost: {parts.netloc}\r\n{authorization}"
            f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
        )
        return head.encode() + content


@dataclass(frozen=True)
class Head:
    """Of an answer: its status, how its body ends, and where the body begins."""

    status: int
    is_chunked: bool
    content_length: int | None
    size: int  # bytes, with the empty line


def read_head(data: bytes) -> Head | None:
    """The head at the beginning of `data`, or None when it is not complete yet."""
    end = data.find(_HEAD_END)
    if end < 0:
        return None
    status_line, *lines = data[:end].split(b"\r\n")
    fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
    length = fields.get(b"content-length")
    return Head(
        status=int(status_line.split()[1]),
        is_chunked=b"chunked" in fields.get(b"transfer-encoding", b"").lower(),
        content_length=None if length is None else int(length),
        size=end + len(_HEAD_END),
    )


class EndFinder:
    """Says when an answer is complete while its bytes come in, looking at as few of them as can be."""

    __slots__ = ("_head", "_kept", "_size")

    def __init__(self) -> None:
        self._head: Head | None = None
        self._kept = b""  # what may belong to something that is cut in two
        self._size = 0

    def is_end(self, data: bytes) -> bool:
        """Whether the answer ends with this piece. An answer without a length ends with its connection."""
        self._size += len(data)
        if self._head is None or len(data) < len(_LAST_CHUNK):
            data = self._kept + data
        if self._head is None:
            self._head = read_head(data)
        if self._head is None:
            self._kept = data
            return False
        if self._head.is_chunked:
            self._kept = data[-len(_LAST_CHUNK) :]
            return self._kept == _LAST_CHUNK
        length = self._head.content_length
        return length is not None and self._size >= self._head.size + length


def read_answer(sent_s: float, received: Received, *, is_streamed: bool) -> Timeline:
    """What a recorded answer says, and when. What is wrong with it stands in `failure`."""
    timeline = Timeline(sent_s, end_s=received[-1][0] if received else sent_s)
    try:
        _read_answer(timeline, received, is_streamed)
    except (ValueError, KeyError, IndexError, TypeError) as error:
        timeline.failure = f"not an answer that can be read: {type(error).__name__}: {error}"
    if timeline.failure is None and timeline.finish_reason is None:
        timeline.failure = "the answer ended without a finish reason"
    return timeline


def _read_answer(timeline: Timeline, received: Received, is_streamed: bool) -> None:
    head, pieces = _without_head(received)
    if head is None:
        timeline.failure = "no answer" if not received else "half an answer"
        return
    body = list(_without_chunking(pieces) if head.is_chunked else pieces)
    if head.status != _OK:
        text = b"".join(piece for _, piece in body)[:200].decode(errors="replace")
        timeline.failure = f"status {head.status}: {text}"
    elif is_streamed:
        for when_s, event in _events(body):
            _add_event(timeline, when_s, orjson.loads(event))
    else:
        answer = orjson.loads(b"".join(piece for _, piece in body))
        _add_event(timeline, timeline.end_s, answer)


def _without_head(received: Received) -> tuple[Head | None, Received]:
    data = b""
    for number, (when_s, piece) in enumerate(received):
        data += piece
        if head := read_head(data):
            return head, [(when_s, data[head.size :]), *received[number + 1 :]]
    return None, []


def _without_chunking(pieces: Received) -> Iterator[tuple[float, bytes]]:
    """The body's bytes, each with the time of the piece that it came in."""
    buffer = b""
    left = 0  # of the chunk that is being read, with its CRLF
    for when_s, piece in pieces:
        buffer += piece
        while buffer:
            if left == 0:
                line, found, rest = buffer.partition(b"\r\n")
                if not found:
                    break
                size = int(line.partition(b";")[0], 16)
                if size == 0:
                    return
                buffer, left = rest, size + 2
            taken, buffer = buffer[:left], buffer[left:]
            content = taken if left - len(taken) >= 2 else taken[: max(left - 2, 0)]
            left -= len(taken)
            if content:
                yield when_s, content


def _events(body: Received) -> Iterator[tuple[float, bytes]]:
    """The data of each server-sent event but [DONE], with the time at which it was complete."""
    buffer = b""
    for when_s, piece in body:
        buffer = (buffer + piece).replace(b"\r\n", b"\n")
        *complete, buffer = buffer.split(b"\n\n")
        for event in complete:
            data = b"\n".join(line[5:].removeprefix(b" ") for line in event.split(b"\n") if line.startswith(b"data:"))
            if data and data != b"[DONE]":
                yield when_s, data


def _add_event(timeline: Timeline, when_s: float, event: dict[str, Any]) -> None:
    if "error" in event:
        timeline.failure = f"error event: {str(event['error'])[:200]}"
        return
    for choice in event["choices"]:
        if choice.get("text"):
            timeline.events += 1
            if not timeline.arrivals_s or timeline.arrivals_s[-1] != when_s:
                timeline.arrivals_s.append(when_s)
        timeline.finish_reason = choice.get("finish_reason") or timeline.finish_reason
    if usage := event.get("usage"):
        timeline.prompt_tokens = usage["prompt_tokens"]
        timeline.completion_tokens = usage["completion_tokens"]
        timeline.is_count_exact = True
    elif timeline.completion_tokens == 0 or not timeline.is_count_exact:
        timeline.completion_tokens, timeline.is_count_exact = timeline.events, False
