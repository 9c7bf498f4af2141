"""A response as a stream of server-sent events."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from starlette.types import Receive, Scope, Send

from frontend.generation.completion_run import Choice, CompletionRun
from frontend.observability.request_record import RequestRecord
from frontend.response import sse
from frontend.response.answer import Answer, Frames
from frontend.response.errors import error_response
from frontend.response.event_writer import EventWriter
from frontend.response.lifetime import RequestLifetime, ResponseOptions
from frontend.response.usage import token_counts
from llm_pipeline.protocol.errors import PipelineError
from llm_pipeline.protocol.messages import TextChunk

_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache, no-store"),
    (b"x-accel-buffering", b"no"),
]


class StreamingResponse:
    """ASGI app that runs the choices of one request and streams their chunks.

    The headers wait for the first chunk, so that an early error has its own HTTP status.
    """

    def __init__(
        self,
        run: CompletionRun,
        answer: Answer,
        record: RequestRecord,
        options: ResponseOptions,
        on_close: Callable[[], None],
    ) -> None:
        self._run = run
        self._answer = answer
        self._record = record
        self._options = options
        self._lifetime = RequestLifetime(run, record, timeout_s=options.timeout_s, on_close=on_close)
        self._has_begun = False
        self._is_keepalive_due = False
        self._sent_finish_reasons = 0
        self._last_sent_s = 0.0
        self._keepalive_timer: asyncio.TimerHandle | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Streams until the end, a failure, or the client's disconnect."""
        with self._lifetime.begin(receive):
            await self._respond(scope, receive, send)

    async def _respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        loop = asyncio.get_running_loop()
        self._last_sent_s = loop.time()
        self._keepalive_timer = loop.call_later(self._options.keepalive_s, self._send_keepalive_if_idle)
        try:
            failure = await self._send_chunks(send, EventWriter(scope, send))
            if failure is None:
                return
            if self._has_begun:
                await self._send_late_failure(failure, send)
            else:
                await error_response(failure, self._record)(scope, receive, send)
        finally:
            self._keepalive_timer.cancel()

    async def _send_chunks(self, send: Send, writer: EventWriter) -> PipelineError | None:
        """Sends chunks until the end, a failure (which it returns), or the client's disconnect.

        From the second chunk on, a chunk is written when it arrives if the client keeps up; the last one is sent here.
        """
        run, answer, loop = self._run, self._answer, asyncio.get_running_loop()
        frames = answer.frames(self._options.head(answer, answer.chunk_type))

        def write_at_once(choice: Choice, chunk: TextChunk) -> bool:
            if chunk.finish_reason is not None:
                return False
            event = frames.chunk(choice, chunk)
            if event:
                self._last_sent_s = loop.time()
                if not writer.write(event):
                    run.wake()
            return True

        while not run.is_abandoned:
            await run.changed(write_at_once if self._has_begun else None)
            await writer.finish()
            events = self._events(frames)
            if run.failure is not None and not (self._has_begun and events):
                return run.failure
            if events:
                await self._begin(send)
                await send({"type": "http.response.body", "body": events, "more_body": not self._is_complete})
                self._last_sent_s = loop.time()
            if self._is_complete:
                return None
        return None

    @property
    def _is_complete(self) -> bool:
        return self._sent_finish_reasons == len(self._run.choices)

    def _events(self, frames: Frames) -> bytes:
        """The bytes of everything that has arrived; after the last chunk, also the end of the stream."""
        parts = []
        for choice, chunk in self._run.take():
            parts.append(frames.chunk(choice, chunk))
            if chunk.finish_reason is not None:
                self._sent_finish_reasons += 1
        if self._is_complete:
            parts.append(self._end(frames))
        elif self._is_keepalive_due:
            self._is_keepalive_due = False
            parts.append(sse.KEEPALIVE)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _end(self, frames: Frames) -> bytes:
        if not self._answer.includes_usage:
            return sse.DONE
        return frames.usage(*token_counts(self._run.choices)) + sse.DONE

    async def _begin(self, send: Send) -> None:
        if not self._has_begun:
            self._has_begun = True
            await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})

    async def _send_late_failure(self, failure: PipelineError, send: Send) -> None:
        self._record.outcome = failure.kind.status
        self._record.error_code = failure.code
        body = sse.error_event(failure) + sse.DONE
        await send({"type": "http.response.body", "body": body, "more_body": False})

    def _send_keepalive_if_idle(self) -> None:
        loop, interval_s = asyncio.get_running_loop(), self._options.keepalive_s
        idle_s = loop.time() - self._last_sent_s
        if idle_s >= interval_s:
            self._is_keepalive_due = True
            self._run.wake()
            idle_s = 0.0
        self._keepalive_timer = loop.call_later(interval_s - idle_s, self._send_keepalive_if_idle)
