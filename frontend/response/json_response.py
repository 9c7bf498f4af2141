"""A completion response as one JSON object."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from frontend.generation.completion_run import Choice, CompletionRun
from frontend.observability.request_record import RequestRecord
from frontend.request.schemas import CompletionRequest
from frontend.response import sse
from frontend.response.best_of import select_best_of
from frontend.response.errors import error_response
from frontend.response.lifetime import RequestLifetime, ResponseOptions
from frontend.response.usage import token_counts, usage_object
from llm_pipeline.protocol.messages import TextChunk


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
            await self._response(chunks)(scope, receive, send)

    def _response(self, chunks: list[list[TextChunk]]) -> Response:
        schema_url = self._record.schema_url("Completion")
        choices, request = self._run.choices, self._request
        selected = select_best_of(chunks, candidates=request.candidates, n=request.n)
        body = {
            **self._options.head(self._record, request.model),
            "choices": [
                self._choice(position, choices[index], chunks[index]) for position, index in enumerate(selected)
            ],
            "usage": usage_object(*token_counts(choices)),
            "$schema": schema_url,
        }
        headers = {"Link": f'<{schema_url}>; rel="describedBy"'}
        return Response(orjson.dumps(body), headers=headers, media_type="application/json")

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
            fields["token_ids"] = tuple(token_id for chunk in chunks for token_id in chunk.token_ids or ())
        if self._request.return_tokens_as_token_ids:
            fields["text"] = sse.token_id_text(fields["token_ids"])
        return fields
