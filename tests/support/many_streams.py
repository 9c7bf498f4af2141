"""Hundreds of streamed completions at once, read by one thread, and the exact end of each."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from concurrent import futures
from dataclasses import dataclass, field
from types import TracebackType

from tests.support.event_loop_thread import EventLoopThread
from tests.support.raw_requests import request_bytes
from tests.support.stack import RunningStack
from tests.support.synthetic_answers import SyntheticAnswers
from tests.support.waiting import wait_until

_DONE = "data: [DONE]"


@dataclass
class StreamRecord:
    """All that one client has received. `prompt` is a token id."""

    prompt: int
    port: int = 0  # of the client's end of the connection
    received: bytearray = field(default_factory=bytearray)

    @property
    def status(self) -> int:
        """The HTTP status; 0 if the connection broke before it."""
        return int(self.received.split(b" ", 2)[1]) if self.received else 0

    @property
    def is_whole(self) -> bool:
        """Whether the response is complete as HTTP, with either framing."""
        return self.received.endswith(b"\r\n0\r\n\r\n") or self.status != 200

    @property
    def events(self) -> list[str]:
        """The complete events."""
        body = _unchunked(bytes(self.received.partition(b"\r\n\r\n")[2]))
        return [block for block in body.decode().split("\n\n")[:-1] if not block.startswith(":")]


@dataclass(frozen=True)
class StreamEnding:
    """A stream's text, and its one end: a finish reason, an error code (also that of a refusal), or neither."""

    record: StreamRecord
    text: str
    finish_reason: str | None
    error: str | None

    @property
    def is_broken(self) -> bool:
        """Whether the connection broke before the end."""
        return self.finish_reason is None and self.error is None


def ending_of(record: StreamRecord) -> StreamEnding:
    """AssertionError if the stream has more than one end, no end although its response is whole, or more after it."""
    if not record.is_whole:
        return StreamEnding(record, _text(record.events), None, None)
    if record.status != 200:
        error = json.loads(record.received.partition(b"\r\n\r\n")[2])["error"]["code"]
        return StreamEnding(record, "", None, error)
    *events, last, done = record.events
    assert done == _DONE, "a whole response without [DONE]"
    assert _DONE not in [*events, last], "[DONE] twice"
    final = json.loads(last.removeprefix("data: "))
    text = _text([*events, last])
    if "error" in final:
        return StreamEnding(record, text, None, final["error"]["code"])
    assert final["choices"][0]["finish_reason"], "neither a finish reason nor an error at the end"
    return StreamEnding(record, text, final["choices"][0]["finish_reason"], None)


def _text(events: Sequence[str]) -> str:
    """The text of all events; only the last may have an end."""
    text = []
    for number, event in enumerate(events):
        is_last = number == len(events) - 1
        content = json.loads(event.removeprefix("data: "))
        if "error" in content:
            assert is_last, "an event after an error"
            break
        choice = content["choices"][0]
        assert is_last or choice["finish_reason"] is None, "an event after the finish reason"
        text.append(choice["text"])
    return "".join(text)


def _unchunked(body: bytes) -> bytes:
    """The content of a body with chunked encoding, as far as its chunks are complete."""
    content, position = bytearray(), 0
    while (end := body.find(b"\r\n", position)) > 0:
        size = int(body[position:end], 16)
        if size == 0 or len(body) < end + 2 + size:
            break
        content += body[end + 2 : end + 2 + size]
        position = end + 2 + size + 2
    return bytes(content)


class ManyStreams:
    """Streams of the scripted executor with `prompts`, each on a connection of its own, while in its context."""

    def __init__(
        self, stack: RunningStack, prompts: Sequence[int], answers: SyntheticAnswers, *, max_tokens: int, **body: object
    ) -> None:
        self.records = [StreamRecord(prompt) for prompt in prompts]
        self._stack = stack
        self._answers = answers
        self._max_tokens = max_tokens
        self._body = body
        self._loop = EventLoopThread("many-streams")
        self._over: futures.Future[object] | None = None

    def __enter__(self) -> ManyStreams:
        self._loop.__enter__()
        self._over = self._loop.start(self._read_all())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._loop.__exit__(kind, error, traceback)

    def wait_until_begun(self, limit_s: float = 40.0) -> None:
        """Returns when each stream has received some of its text."""
        wait_until(
            lambda: all(b"data:" in record.received for record in self.records),
            limit_s=limit_s,
            what=f"text on {len(self.records)} streams",
        )

    def endings(self, *, within_s: float) -> list[StreamEnding]:
        """The end of each stream. AssertionError if one hangs, has no exact end, or received wrong text."""
        assert self._over is not None
        try:
            self._over.result(timeout=within_s)
        except futures.TimeoutError as error:
            raise AssertionError(f"a stream did not end within {within_s} s") from error
        endings = [ending_of(record) for record in self.records]
        for ending in endings:
            whole = self._answers.text([ending.record.prompt], self._max_tokens)
            assert whole.startswith(ending.text), "wrong text"
            if ending.finish_reason is not None:
                assert (ending.finish_reason, ending.text) == ("length", whole), "not all of the text"
        return endings

    async def _read_all(self) -> None:
        await asyncio.gather(*(self._read(record) for record in self.records))

    async def _read(self, record: StreamRecord) -> None:
        try:
            reader, writer = await asyncio.open_connection(*self._stack.address)
            record.port = writer.get_extra_info("sockname")[1]
            head, body = request_bytes(
                self._stack, prompt=[record.prompt], max_tokens=self._max_tokens, stream=True, **self._body
            )
            head = head.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
            writer.write(head + body)
            try:
                while data := await reader.read(2**16):
                    record.received += data
            finally:
                writer.close()
        except ConnectionError:
            pass  # the record is not whole
