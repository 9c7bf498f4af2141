"""OpenAI's completions protocol on the wire: requests as bytes, and timelines from recorded responses.

Requests and the detection of a response's end are written by hand, because they run while the clock runs and an HTTP
library would cost more than what is measured. Recorded responses are parsed afterwards, by h11 and httpx-sse.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import h11
import httpx
import orjson
from httpx_sse import EventSource, SSEError

from benchmarks.load.job import Timeline

_HEAD_END = b"\r\n\r\n"
_LAST_CHUNK = b"\r\n0\r\n\r\n"
_OK = 200

Received = Sequence[tuple[float, bytes]]  # arrival time in seconds, and data


@dataclass(frozen=True)
class CompletionsEndpoint:
    """An OpenAI-compatible server. `base_url` is the URL up to /completions, such as http://127.0.0.1:9000/v1."""

    base_url: str
    model: str
    api_key: str | None = None

    @property
    def address(self) -> tuple[str, int]:
        """Host and port. Raises ValueError if the URL is not plain HTTP."""
        parts = urlsplit(self.base_url)
        if parts.scheme != "http" or parts.hostname is None:
            raise ValueError(f"Invalid base URL {self.base_url!r}. Use plain HTTP, as in http://127.0.0.1:9000/v1.")
        return parts.hostname, parts.port or 80

    def request(self, prompt: str, max_tokens: int, *, is_streamed: bool) -> bytes:
        """Returns the HTTP request of one greedy completion."""
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


class ResponseEndDetector:
    """Detects the end of a response while its bytes arrive, and parses as little as possible."""

    __slots__ = ("_end_size", "_is_chunked", "_kept", "_size")

    def __init__(self) -> None:
        self._is_chunked: bool | None = None  # None until the head is complete
        self._end_size: int | None = None  # of a response with Content-Length, in bytes with its head
        self._kept = b""  # the head so far, or what may be the beginning of the last chunk
        self._size = 0

    def is_end(self, data: bytes) -> bool:
        """Returns whether the response ends with this piece. One without a length ends with its connection."""
        self._size += len(data)
        if self._is_chunked is None or len(data) < len(_LAST_CHUNK):
            data = self._kept + data
        if self._is_chunked is None:
            self._read_head(data)
        if self._is_chunked is None:
            self._kept = data
            return False
        if self._is_chunked:
            self._kept = data[-len(_LAST_CHUNK) :]
            return self._kept == _LAST_CHUNK
        return self._end_size is not None and self._size >= self._end_size

    def _read_head(self, data: bytes) -> None:
        end = data.find(_HEAD_END)
        if end < 0:
            return
        lines = data[:end].split(b"\r\n")[1:]
        fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
        self._is_chunked = b"chunked" in fields.get(b"transfer-encoding", b"").lower()
        if (length := fields.get(b"content-length")) is not None:
            self._end_size = end + len(_HEAD_END) + int(length)


def read_response(sent_s: float, received: Received, *, is_streamed: bool) -> Timeline:
    """Parses a recorded response into its timeline; a malformed or failed one has a `failure`."""
    timeline = Timeline(sent_s, end_s=received[-1][0] if received else sent_s)
    try:
        _read_response(timeline, received, is_streamed)
    except (h11.RemoteProtocolError, SSEError, ValueError, KeyError, IndexError, TypeError) as error:
        timeline.failure = f"malformed response: {type(error).__name__}: {error}"
    if timeline.failure is None and timeline.finish_reason is None:
        timeline.failure = "the response has no finish reason"
    return timeline


def _read_response(timeline: Timeline, received: Received, is_streamed: bool) -> None:
    response, body = _parse_http(received)
    if response is None:
        timeline.failure = "incomplete response" if received else "no response"
    elif response.status_code != _OK:
        text = b"".join(data for _, data in body)[:200].decode(errors="replace")
        timeline.failure = f"status {response.status_code}: {text}"
    elif is_streamed:
        for arrived_s, event in _events(body):
            _add_event(timeline, arrived_s, event)
    else:
        _add_event(timeline, timeline.end_s, orjson.loads(b"".join(data for _, data in body)))


def _parse_http(received: Received) -> tuple[h11.Response | None, Received]:
    """Returns the head, None if it is incomplete, and the body's data with the time of the piece that it came in."""
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method="POST", target="/", headers=[("Host", "recorded"), ("Content-Length", "0")]))
    connection.send(h11.EndOfMessage())
    response: h11.Response | None = None
    body: list[tuple[float, bytes]] = []
    for arrived_s, piece in received:
        connection.receive_data(piece)
        while (event := connection.next_event()) is not h11.NEED_DATA:
            if isinstance(event, h11.Response):
                response = event
            elif isinstance(event, h11.Data):
                body.append((arrived_s, bytes(event.data)))
            elif isinstance(event, h11.EndOfMessage):
                return response, body
    return response, body


def _events(body: Received) -> Iterator[tuple[float, dict[str, Any]]]:
    """Yields the JSON of each server-sent event before [DONE], with the arrival time of the piece that completed it."""
    arrived_s = 0.0

    def pieces() -> Iterator[bytes]:
        nonlocal arrived_s
        for arrived_s, data in body:  # noqa: B007 - read below: httpx takes a piece only once it needs it
            yield data

    response = httpx.Response(_OK, headers={"Content-Type": "text/event-stream"}, content=pieces())
    for event in EventSource(response).iter_sse():
        if event.data and event.data != "[DONE]":
            yield arrived_s, orjson.loads(event.data)


def _add_event(timeline: Timeline, arrived_s: float, event: dict[str, Any]) -> None:
    if "error" in event:
        timeline.failure = f"error event: {str(event['error'])[:200]}"
        return
    for choice in event["choices"]:
        if choice.get("text"):
            timeline.events += 1
            if not timeline.arrivals_s or timeline.arrivals_s[-1] != arrived_s:
                timeline.arrivals_s.append(arrived_s)
        timeline.finish_reason = choice.get("finish_reason") or timeline.finish_reason
    if usage := event.get("usage"):
        timeline.prompt_tokens = usage["prompt_tokens"]
        timeline.completion_tokens = usage["completion_tokens"]
        timeline.is_count_exact = True
    elif timeline.completion_tokens == 0 or not timeline.is_count_exact:
        timeline.completion_tokens, timeline.is_count_exact = timeline.events, False
