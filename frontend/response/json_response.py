"""A completion response as one JSON object."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from frontend.generation.completion_run import Choice, CompletionRun
from frontend.loop_breaks import LoopBreaks
from frontend.observability.request_record import RequestRecord
from frontend.request.schemas import CompletionRequest
from frontend.response import sse
from frontend.response.best_of import select_best_of
from frontend.response.errors import error_response
from frontend.response.lifetime import RequestLifetime, ResponseOptions
from frontend.response.usage import token_counts, usage_object
from llm_pipeline.protocol.messages import TextChunk

_PIECE_BYTES = 256 * 1024  # of a response that are passed to the connection at once


class JsonCompletionResponse:
    """ASGI app that runs the choices of one request and responds when all of them are complete."""

    def __init__(
        self,
        run: CompletionRun,
        request: CompletionRequest,
        record: RequestRecord,
        options: ResponseOptions,
        on_close: Callable[[], None],
    ) -> None:
        self._run = run
        self._request = request
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
        size, schema_url = sum(map(len, parts)), self._record.schema_url("Completion")
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
        choices, request, breaks = self._run.choices, self._request, LoopBreaks()
        head = orjson.dumps(self._options.head(self._record, request.model))
        parts = [head[:-1] + b',"choices":[']
        for position, index in enumerate(select_best_of(chunks, candidates=request.candidates, n=request.n)):
            separator = b"," if position else b""
            parts += separator, orjson.dumps(self._choice(position, choices[index], chunks[index]))
            await breaks.pause()
        usage = {"usage": usage_object(*token_counts(choices)), "$schema": self._record.schema_url("Completion")}
        return [*parts, b"]," + orjson.dumps(usage)[1:]]

    def _choice(self, position: int, choice: Choice, chunks: list[TextChunk]) -> dict[str, Any]:
        # Without streaming, a choice is one chunk, and its logprobs are already JSON.
        logprobs = next((orjson.Fragment(chunk.logprobs_json) for chunk in chunks if chunk.logprobs_json), None)
        fields: dict[str, Any] = {
            "index": position,
            "text": "".join(chunk.text for chunk in chunks),
            "logprobs": logprobs,
            "finish_reason": str(choice.finish_reason),
        }
        if self._request.wants_token_ids:
            fields.update(self._ids(chunks))
        return fields

    def _ids(self, chunks: list[TextChunk]) -> dict[str, Any]:
        """`token_ids` are those of the text that they replace, or else of the completion, with the prompt's beside."""
        request = self._request
        token_ids = tuple(token_id for chunk in chunks for token_id in chunk.token_ids or ())
        prompt_token_ids = next((chunk.prompt_token_ids for chunk in chunks if chunk.prompt_token_ids), ())
        in_text = (*prompt_token_ids, *token_ids) if request.echo else token_ids
        fields: dict[str, Any] = {}
        if request.return_tokens_as_token_ids:
            fields = {"text": sse.token_id_text(in_text), "token_ids": in_text}
        if request.return_token_ids:
            fields |= {"token_ids": token_ids, "prompt_token_ids": prompt_token_ids}
        return fields
