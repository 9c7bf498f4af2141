"""The two kinds of answer to a completion request, as ASGI responses: a stream of events, and one JSON object.

Both watch for the client's departure while they wait for the engine, and leave nothing running behind.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from frontend.generation.completion_run import CancelReason, Choice, CompletionRun
from frontend.observability.request_record import CLIENT_CLOSED_REQUEST, RequestRecord
from frontend.request.schemas import CompletionRequest
from frontend.response import sse
from frontend.response.errors import error_response
from llm_pipeline.protocol.errors import ERRORS, ErrorCode, PipelineError
from llm_pipeline.protocol.messages import TextChunk

# A client that stops reading blocks our writing; the deadline then has to cut the connection.
_WRITE_GRACE_S = 10.0

_STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


@dataclass(frozen=True)
class ResponseOptions:
    """What an answer needs to know beside the request. Times in seconds."""

    completion_id: str
    timeout_s: float  # left of the request's time when its answer begins
    keepalive_s: float


class CompletionResponse(Response):
    """Runs the choices of one request and answers with them."""

    def __init__(
        self,
        run: CompletionRun,
        request: CompletionRequest,
        record: RequestRecord,
        settings: ResponseOptions,
        on_close: Callable[[], None],
    ) -> None:
        super().__init__()
        self._is_cut_off = False
        self._run = run
        self._request = request
        self._record = record
        self._settings = settings
        self._on_close = on_close
        self._head = {
            "id": settings.completion_id,
            "object": "text_completion",
            "created": record.created,
            "model": request.model,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, and stop what the engine still does for it when the answer is over for any reason."""
        loop = asyncio.get_running_loop()
        watcher = asyncio.create_task(self._watch(receive))
        deadline = loop.call_later(self._settings.timeout_s, self._deadline_passed)
        cut = loop.call_later(self._settings.timeout_s + _WRITE_GRACE_S, self._cut_off, asyncio.current_task())
        self._run.start()
        try:
            await self._answer(scope, receive, send)
        except asyncio.CancelledError:
            if not self._is_cut_off:
                raise
            self._record.outcome = ERRORS[ErrorCode.DEADLINE_EXCEEDED].status
        finally:
            watcher.cancel()
            deadline.cancel()
            cut.cancel()
            self._close()

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        raise NotImplementedError

    def _cut_off(self, answer: asyncio.Task[Any] | None) -> None:
        self._is_cut_off = True
        if answer is not None:
            answer.cancel()

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._run.abandon()

    def _deadline_passed(self) -> None:
        message = "The request did not finish in its time; ask for fewer tokens or allow more time."
        self._run.fail(PipelineError(ErrorCode.DEADLINE_EXCEEDED, message), CancelReason.DEADLINE)

    def _close(self) -> None:
        run, record = self._run, self._record
        if run.is_abandoned and not run.is_finished:
            record.outcome = CLIENT_CLOSED_REQUEST
        run.cancel(CancelReason.CLIENT_GONE)
        record.prompt_tokens, record.completion_tokens = token_counts(run.choices)
        record.finish_reasons = tuple(str(choice.finish_reason) for choice in run.choices if choice.finish_reason)
        self._on_close()


class StreamingCompletionResponse(CompletionResponse):
    """Server-sent events. The headers wait for the first token, so that an early error has its real status."""

    _has_begun = False
    _is_silent = False
    _sent_finishes = 0
    _last_sent_s = 0.0

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        loop = asyncio.get_running_loop()
        self._last_sent_s = loop.time()
        self._timer = loop.call_later(self._settings.keepalive_s, self._look_for_silence)
        try:
            failure = await self._send_chunks(send)
            if failure is None:
                return
            if self._has_begun:
                await self._send_late_failure(failure, send)
            else:
                await error_response(failure, self._record)(scope, receive, send)
        finally:
            self._timer.cancel()

    async def _send_chunks(self, send: Send) -> PipelineError | None:
        """Sends chunks until the end (None), a failure, or the client's departure (None)."""
        run, frames, loop = self._run, self._frames(), asyncio.get_running_loop()
        while not run.is_abandoned:
            await run.changed()
            events = self._events(frames)
            if run.failure is not None and not (self._has_begun and events):
                return run.failure
            if events:
                await self._begin(send)
                await send({"type": "http.response.body", "body": events, "more_body": not self._is_over})
                self._last_sent_s = loop.time()
            if self._is_over:
                return None
        return None

    @property
    def _is_over(self) -> bool:
        return self._sent_finishes == len(self._run.choices)

    def _events(self, frames: sse.ChunkFrames) -> bytes:
        """The bytes of everything that has arrived, with the stream's end behind the last chunk."""
        parts = []
        for choice, chunk in self._run.take():
            parts.append(frames.chunk(choice, chunk))
            if chunk.finish_reason is not None:
                self._sent_finishes += 1
        if self._is_over:
            parts.append(self._ending(frames))
        elif self._is_silent:
            self._is_silent = False
            parts.append(sse.KEEPALIVE)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _ending(self, frames: sse.ChunkFrames) -> bytes:
        options = self._request.stream_options
        if options is None or not options.include_usage:
            return sse.DONE
        return frames.usage(*token_counts(self._run.choices)) + sse.DONE

    def _frames(self) -> sse.ChunkFrames:
        options = self._request.stream_options
        return sse.ChunkFrames(
            self._head,
            include_usage=options is not None and options.include_usage,
            continuous_usage=options is not None and options.continuous_usage_stats,
            as_token_ids=self._request.return_tokens_as_token_ids,
            with_token_ids=self._request.return_token_ids,
        )

    async def _begin(self, send: Send) -> None:
        if not self._has_begun:
            self._has_begun = True
            await send({"type": "http.response.start", "status": 200, "headers": _STREAM_HEADERS})

    async def _send_late_failure(self, failure: PipelineError, send: Send) -> None:
        self._record.outcome = failure.kind.status
        self._record.error_code = failure.code
        body = sse.error_event(failure) + sse.DONE
        await send({"type": "http.response.body", "body": body, "more_body": False})

    def _look_for_silence(self) -> None:
        loop, pause_s = asyncio.get_running_loop(), self._settings.keepalive_s
        silent_s = loop.time() - self._last_sent_s
        if silent_s >= pause_s:
            self._is_silent = True
            self._run.wake()
            silent_s = 0.0
        self._timer = loop.call_later(pause_s - silent_s, self._look_for_silence)


class JsonCompletionResponse(CompletionResponse):
    """One JSON object with all choices."""

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        run = self._run
        chunks: list[list[TextChunk]] = [[] for _ in run.choices]
        while not run.is_finished and run.failure is None and not run.is_abandoned:
            await run.changed()
            for choice, chunk in run.take():
                chunks[choice.index].append(chunk)
        if run.failure is not None:
            await error_response(run.failure, self._record)(scope, receive, send)
        elif run.is_finished:
            await self._whole(chunks)(scope, receive, send)

    def _whole(self, chunks: list[list[TextChunk]]) -> Response:
        schema_url = self._record.schema_url("Completion")
        chosen = select_best_of(self._run.choices, chunks, self._request)
        body = {
            **self._head,
            "choices": [
                self._choice(index, self._run.choices[made], chunks[made]) for index, made in enumerate(chosen)
            ],
            "usage": sse.usage_object(*token_counts(self._run.choices)),
            "$schema": schema_url,
        }
        headers = {"Link": f'<{schema_url}>; rel="describedBy"'}
        return Response(orjson.dumps(body), headers=headers, media_type="application/json")

    def _choice(self, index: int, choice: Choice, chunks: list[TextChunk]) -> dict[str, Any]:
        # Without a stream, a choice is one chunk, and its log probs are JSON already.
        log_probs = next((orjson.Fragment(chunk.logprobs_json) for chunk in chunks if chunk.logprobs_json), None)
        fields: dict[str, Any] = {
            "index": index,
            "text": "".join(chunk.text for chunk in chunks),
            "logprobs": log_probs,
        }
        fields["finish_reason"] = str(choice.finish_reason)
        if self._request.wants_token_ids:
            fields["token_ids"] = tuple(token_id for chunk in chunks for token_id in chunk.token_ids or ())
        if self._request.return_tokens_as_token_ids:
            fields["text"] = sse.token_id_text(fields["token_ids"])
        return fields


def select_best_of(
    choices: Sequence[Choice], chunks: Sequence[Sequence[TextChunk]], request: CompletionRequest
) -> list[int]:
    """Which of the completions that were made are given, in the order of the answer.

    With best_of above n: for each prompt the n with the highest log prob per token, the best first. Else all.
    """
    made = range(len(choices))
    if request.candidates == request.n:
        return list(made)
    found: list[int] = []
    for start in made[:: request.candidates]:
        candidates = made[start : start + request.candidates]
        found += sorted(candidates, key=lambda index: _log_prob_per_token(chunks[index]), reverse=True)[: request.n]
    return found


def _log_prob_per_token(chunks: Sequence[TextChunk]) -> float:
    last = chunks[-1]
    return (last.cumulative_logprob or 0.0) / max(last.completion_tokens, 1)


def token_counts(choices: Sequence[Choice]) -> tuple[int, int]:
    """Prompt and completion tokens of a request. A prompt counts once, however many choices it has, as at OpenAI."""
    prompts = {choice.prompt_index: choice.prompt_tokens for choice in choices if choice.prompt_tokens}
    return sum(prompts.values()), sum(choice.completion_tokens for choice in choices)
