"""A response as one JSON object."""

from __future__ import annotations

from collections.abc import Callable

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from frontend.generation.completion_run import CompletionRun
from frontend.loop_breaks import LoopBreaks
from frontend.observability.request_record import RequestRecord
from frontend.response.answer import Answer
from frontend.response.errors import error_response
from frontend.response.lifetime import RequestLifetime, ResponseOptions
from frontend.response.usage import token_counts, usage_object
from llm_pipeline.protocol.messages import TextChunk

_PIECE_BYTES = 256 * 1024  # of a response that are passed to the connection at once


class JsonResponse:
    """ASGI app that runs the choices of one request and responds when all of them are complete."""

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

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Responds with the completions or an error; not at all if the client has disconnected."""
        with self._lifetime.begin(receive):
            await self._respond(scope, receive, send)

    async def _respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        run = self._run
        chunks: list[list[TextChunk]] = [[] for _ in run.choices]
        while not run.is_finished and run.failure is None and not run.is_abandoned:
            await run.changed()
            for choice, chunk in run.take():
                chunks[choice.index].append(chunk)
        if run.failure is not None:
            await error_response(run.failure, self._record)(scope, receive, send)
        elif run.is_finished:
            await self._send(chunks, scope, receive, send)

    async def _send(self, chunks: list[list[TextChunk]], scope: Scope, receive: Receive, send: Send) -> None:
        parts = await self._parts(chunks)
        size, schema_url = sum(map(len, parts)), self._record.schema_url(self._answer.schema_name)
        headers = {"Link": f'<{schema_url}>; rel="describedBy"', "Content-Length": str(size)}
        start = Response(headers=headers, media_type="application/json")
        await send({"type": "http.response.start", "status": start.status_code, "headers": start.raw_headers})
        if size <= _PIECE_BYTES:
            await send({"type": "http.response.body", "body": b"".join(parts), "more_body": False})
            return
        breaks = LoopBreaks()
        for part in parts:
            for begin in range(0, len(part), _PIECE_BYTES):
                body = part[begin : begin + _PIECE_BYTES]
                await send({"type": "http.response.body", "body": body, "more_body": True})
                await breaks.pause()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _parts(self, chunks: list[list[TextChunk]]) -> list[bytes]:
        """The JSON of the response in parts of at most one choice, which may be megabytes."""
        choices, answer, breaks = self._run.choices, self._answer, LoopBreaks()
        head = orjson.dumps(self._options.head(answer, answer.object_type))
        parts = [head[:-1] + b',"choices":[']
        for position, index in enumerate(answer.selected(chunks)):
            separator = b"," if position else b""
            parts += separator, orjson.dumps(answer.choice(position, choices[index], chunks[index]))
            await breaks.pause()
        usage = usage_object(*token_counts(choices))
        schema_url = self._record.schema_url(answer.schema_name)
        end = {"usage": usage, **answer.more_fields(chunks), "$schema": schema_url}
        return [*parts, b"]," + orjson.dumps(end)[1:]]
