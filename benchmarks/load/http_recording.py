"""OpenAI's completions protocol on the wire: requests as bytes, and timelines from recorded responses.

Requests and the detection of a response's end are written by hand, because they run while the clock runs and an HTTP
library would cost more than what is measured. Recorded responses are parsed afterwards: heads and whole responses by
h11, streams by the few lines below, since a load may record millions of events and h11 takes 20 microseconds for each.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any
from urllib.parse import urlsplit

import h11
import orjson

from benchmarks.load.job import Timeline

_LINE_END = b"\r\n"
_HEAD_END = b"\r\n\r\n"
_LAST_CHUNK = b"\r\n0\r\n\r\n"
_OK = 200

Received = Sequence[tuple[float, bytes]]  # arrival time in seconds, and data


@dataclass(frozen=True)
class CompletionsEndpoint:
    """An OpenAI-compatible server. `base_url` is the URL up to /completions, such as http://127.0.0.1:9000/v1.

    `generates_max_tokens`: its engine always generates `max_tokens`, and its usage is not read. Servers by others may
    report no usage, or add up counts that already are totals.
    """

    base_url: str
    model: str
    api_key: str | None = None
    generates_max_tokens: bool = False

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


def with_known_tokens(timeline: Timeline, max_tokens: int) -> Timeline:
    """Returns the timeline of an engine that always generates `max_tokens`."""
    return timeline if timeline.failure else replace(timeline, completion_tokens=max_tokens, is_count_exact=True)


def read_response(sent_s: float, received: Received, *, is_streamed: bool) -> Timeline:
    """Parses a recorded response into its timeline; a malformed or failed one has a `failure`."""
    timeline = Timeline(sent_s, end_s=received[-1][0] if received else sent_s)
    try:
        _read_response(timeline, received, is_streamed)
    except (h11.RemoteProtocolError, ValueError, KeyError, IndexError, TypeError) as error:
        timeline.failure = f"malformed response: {type(error).__name__}: {error}"
    if timeline.failure is None and timeline.finish_reason is None:
        timeline.failure = "the response has no finish reason"
    return timeline


def _read_response(timeline: Timeline, received: Received, is_streamed: bool) -> None:
    if is_streamed and _is_chunked_success(received):
        for arrived_s, event in _events(received):
            _add_event(timeline, arrived_s, event)
        return
    response, body = _parse_http(received)
    if response is None:
        timeline.failure = "incomplete response" if received else "no response"
    elif response.status_code != _OK:
        timeline.failure = f"status {response.status_code}: {body[:200].decode(errors='replace')}"
    elif is_streamed:
        for event in filter(None, map(_event_of, body.splitlines())):
            _add_event(timeline, timeline.end_s, event)
    else:
        _add_event(timeline, timeline.end_s, orjson.loads(body))


def _parse_http(received: Received) -> tuple[h11.Response | None, bytes]:
    """Returns the head, None if it is incomplete, and the body as far as it has been received."""
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method="POST", target="/", headers=[("Host", "recorded"), ("Content-Length", "0")]))
    connection.send(h11.EndOfMessage())
    response: h11.Response | None = None
    body: list[bytes] = []
    for _, piece in received:
        connection.receive_data(piece)
        while (event := connection.next_event()) is not h11.NEED_DATA:
            if isinstance(event, h11.Response):
                response = event
            elif isinstance(event, h11.Data):
                body.append(bytes(event.data))
            elif isinstance(event, h11.EndOfMessage):
                return response, b"".join(body)
    return response, b"".join(body)


def _is_chunked_success(received: Received) -> bool:
    """Returns whether the head is complete, and announces a body in chunks and no error."""
    head = b""
    for _, piece in received:
        head += piece
        if (end := head.find(_HEAD_END)) >= 0:
            first, *fields = head[:end].lower().split(_LINE_END)
            return b" 200" in first and any(
                field.startswith(b"transfer-encoding:") and b"chunked" in field for field in fields
            )
    return False


def _events(received: Received) -> Iterator[tuple[float, dict[str, Any]]]:
    """Yields the JSON of each server-sent event before [DONE], with the arrival time of the piece that completed it.

    Raises ValueError for a malformed chunk or event.
    """
    ends = list(accumulate(len(piece) for _, piece in received))  # of each piece, in bytes from the beginning
    rest = b""
    for end, content in _chunks(b"".join(piece for _, piece in received)):
        # Usually one event is one chunk. The last line of an incomplete event waits for the next chunk.
        *lines, rest = (rest + content).split(b"\n")
        for line in lines:
            if event := _event_of(line):
                yield received[bisect_left(ends, end)][0], event


def _chunks(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yields the content of each complete chunk of the body, and where it ends in `data`."""
    place = data.index(_HEAD_END) + len(_HEAD_END)
    while (line_end := data.find(_LINE_END, place)) >= 0:
        size = int(data[place:line_end].partition(b";")[0], 16)
        start = line_end + len(_LINE_END)
        place = start + size + len(_LINE_END)
        if size == 0 or place > len(data):
            return
        yield start + size, data[start : start + size]


def _event_of(line: bytes) -> dict[str, Any] | None:
    """Returns the JSON of a data line; None for every other line. All servers write an event's JSON in one line."""
    if not line.startswith(b"data:"):
        return None
    data = line[5:].strip()
    event: dict[str, Any] | None = None if data in (b"", b"[DONE]") else orjson.loads(data)
    return event


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
