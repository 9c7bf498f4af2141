"""The events of a stream are the chunks in their order, however they arrive and however slowly the client reads."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message

from frontend.backends.fake import FakeGenerator
from frontend.backends.generator import OnChunk
from frontend.generation.completion_run import Choice, CompletionRun, RunLimits
from frontend.observability.request_record import RequestRecord
from frontend.request.schemas import CompletionRequest
from frontend.response.completion import CompletionAnswer
from frontend.response.lifetime import ResponseOptions
from frontend.response.stream import StreamingResponse
from llm_pipeline.protocol.messages import CompletionParameters, FinishReason, TextChunk
from tests.support.sse_events import events

CHOICES = 3


class PushedGenerator(FakeGenerator):
    """Pushes chunks when the test says so, in the test's own step, as a burst of a channel does."""

    def __init__(self) -> None:
        super().__init__()
        self.on_chunk: dict[str, OnChunk] = {}
        self.done: dict[str, asyncio.Event] = {}

    async def generate(self, parameters: CompletionParameters, on_chunk: OnChunk) -> None:
        self.on_chunk[parameters.request_key] = on_chunk
        done = self.done[parameters.request_key] = asyncio.Event()
        await done.wait()

    async def cancel(self, key: str) -> None:
        self.done[key].set()


class NoObserver:
    """Observes nothing."""

    def on_chunk(self, choice: Choice, chunk: TextChunk) -> None: ...
    def on_failure(self, error: Exception) -> None: ...
    def on_cancel(self, reason: Any) -> None: ...
    def on_end(self, choice: Choice) -> None: ...


class SlowConnection:
    """ASGI's side of a connection whose client can stop reading: `send` waits before it writes, as uvicorn's does."""

    def __init__(self) -> None:
        self.body = b""
        self.is_complete = False
        self.writable = asyncio.Event()
        self.writable.set()
        self.is_gone = asyncio.Event()

    async def send(self, message: Message) -> None:
        await self.writable.wait()
        if message["type"] == "http.response.body" and not self.is_gone.is_set():
            assert not self.is_complete
            self.body += message["body"]
            self.is_complete = not message["more_body"]

    async def receive(self) -> Message:
        await self.is_gone.wait()
        return {"type": "http.disconnect"}


@dataclass(frozen=True)
class Push:
    """A chunk arrives for a choice; the last one with its finish reason."""

    choice: int
    text: str
    is_last: bool = False


@dataclass(frozen=True)
class Reading:
    """The client stops to read, or continues."""

    is_on: bool


@dataclass(frozen=True)
class Turn:
    """The event loop runs other tasks."""


@dataclass(frozen=True)
class Disconnect:
    """The client disconnects."""


Step: TypeAlias = Push | Reading | Turn | Disconnect
STEPS = st.one_of(
    st.builds(Push, st.integers(0, CHOICES - 1), st.text(max_size=3), st.booleans()),
    st.builds(Push, st.integers(0, CHOICES - 1), st.text(max_size=3)),
    st.builds(Reading, st.booleans()),
    st.just(Turn()),
)


class Stream:
    """One streaming response with CHOICES choices."""

    def __init__(self, limits: RunLimits) -> None:
        self.generator, self.connection = PushedGenerator(), SlowConnection()
        keys = [str(index) for index in range(CHOICES)]
        choices = [Choice(index, 0, CompletionParameters(key, "r", stream=True)) for index, key in enumerate(keys)]
        self.run = CompletionRun(choices, self.generator, NoObserver(), limits)
        request = CompletionRequest.model_validate({"model": "m", "prompt": "Hi", "n": CHOICES, "stream": True})
        record = RequestRecord("r", "POST", "/", "http://test", False)
        options = ResponseOptions("cmpl-1", 0, 60, 60)
        self.response = StreamingResponse(self.run, CompletionAnswer(request), record, options, lambda: None)
        self.pushed: list[Push] = []
        self._finished: set[int] = set()

    async def play(self, steps: Sequence[Step]) -> None:
        """Runs the steps, then ends all choices and lets the client read to the end."""
        serving = asyncio.create_task(self.response({"state": {}}, self.connection.receive, self.connection.send))
        await _turns()
        for step in steps:
            if isinstance(step, Push):
                self._push(step)
            elif isinstance(step, Reading):
                (self.connection.writable.set if step.is_on else self.connection.writable.clear)()
            elif isinstance(step, Turn):
                await _turns()
            else:
                self.connection.is_gone.set()
        for index in range(CHOICES):
            self._push(Push(index, "", is_last=True))
        self.connection.writable.set()
        await asyncio.wait_for(serving, 5)
        for done in self.generator.done.values():
            done.set()
        await _turns()

    def _push(self, push: Push) -> None:
        if push.choice in self._finished:
            return
        self.pushed.append(push)
        count = sum(other.choice == push.choice for other in self.pushed)
        reason = FinishReason.STOP if push.is_last else None
        self.generator.on_chunk[str(push.choice)](TextChunk(push.text, count, None, 1, reason))
        if push.is_last:
            self._finished.add(push.choice)

    def visible(self) -> list[tuple[int, str]]:
        """The chunks that have an event of their own: choice and text."""
        return [(push.choice, push.text) for push in self.pushed if push.text or push.is_last]

    def sent(self) -> list[tuple[int, str]]:
        """The events that the client has got: choice and text."""
        received = [event["choices"][0] for event in events(self.connection.body.decode())]
        return [(choice["index"], choice["text"]) for choice in received]


async def _turns() -> None:
    for _ in range(4):
        await asyncio.sleep(0)


def _text(events_of: Sequence[tuple[int, str]], index: int) -> str:
    return "".join(text for choice, text in events_of if choice == index)


@given(st.lists(STEPS, max_size=40))
def test_every_chunk_is_an_event_in_order(steps: list[Step]) -> None:
    async def check() -> None:
        stream = Stream(RunLimits())
        await stream.play(steps)
        assert stream.sent() == stream.visible()
        assert stream.connection.body.endswith(b"data: [DONE]\n\n")

    asyncio.run(check())


@given(st.lists(STEPS, max_size=40))
def test_merged_chunks_have_the_same_text(steps: list[Step]) -> None:
    async def check() -> None:
        stream = Stream(RunLimits(merge_chunks=2))
        await stream.play(steps)
        sent, visible = stream.sent(), stream.visible()
        assert len(sent) <= len(visible)
        assert [_text(sent, index) for index in range(CHOICES)] == [_text(visible, index) for index in range(CHOICES)]
        assert stream.connection.body.endswith(b"data: [DONE]\n\n")

    asyncio.run(check())


@given(st.lists(STEPS, max_size=20), st.lists(STEPS, max_size=20))
def test_client_that_disconnects_has_got_the_beginning(before: list[Step], after: list[Step]) -> None:
    async def check() -> None:
        stream = Stream(RunLimits())
        await stream.play([*before, Disconnect(), *after])
        if not stream.connection.is_complete:
            stream.connection.body += b"data: [DONE]\n\n"
        sent = stream.sent()
        assert sent == stream.visible()[: len(sent)]
        assert all(choice.is_drained for choice in stream.run.choices)

    asyncio.run(check())
