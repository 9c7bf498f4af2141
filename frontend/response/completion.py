"""The operation `completions`: from a valid request to the engine's input and the form of the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from frontend.generation.completion_run import Choice
from frontend.models.registry import ServedModel
from frontend.request.parsing import RequestForm
from frontend.request.schemas import COMPLETION_FORM, CompletionRequest
from frontend.request.to_parameters import EngineInput, completion_input
from frontend.response import sse
from frontend.response.best_of import select_best_of
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.protocol.messages import TextChunk


class CompletionOperation:
    """Completes prompts as they are."""

    name = "completions"

    @property
    def form(self) -> RequestForm[CompletionRequest]:
        """The rules of a completion request."""
        return COMPLETION_FORM

    async def prepare(
        self, model: ServedModel, request: CompletionRequest, holder: str | None = None
    ) -> tuple[EngineInput, CompletionAnswer]:
        """The engine's input and the answer's form. Raises PipelineError (400) if the model cannot do it."""
        await _check_best_of(model, request)
        return completion_input(request), CompletionAnswer(request)


async def _check_best_of(model: ServedModel, request: CompletionRequest) -> None:
    """best_of ranks by logprobs: the engine would reject a field that the client has not sent."""
    if request.candidates == request.n:
        return
    info = await model.info_cache.read()
    if info is not None and info.capabilities.logprobs is None:
        raise PipelineError(
            ErrorCode.UNSUPPORTED_PARAMETER,
            f"best_of greater than n requires logprobs, which this server's engine ({info.capabilities.executor}) "
            "does not support. Omit best_of.",
            param="best_of",
        )


class CompletionAnswer:
    """The form of the answer to a completion request: `text` beside its logprobs."""

    id_prefix = "cmpl-"
    object_type = "text_completion"
    chunk_type = "text_completion"
    schema_name = "Completion"

    def __init__(self, request: CompletionRequest) -> None:
        self._request = request

    @property
    def model(self) -> str:
        """The model under the name in the request."""
        return self._request.model

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return self._request.includes_usage

    def frames(self, head: Mapping[str, Any]) -> sse.ChunkFrames:
        """The encoder of a stream."""
        request = self._request
        return sse.ChunkFrames(
            head,
            include_usage=request.includes_usage,
            continuous_usage=request.has_continuous_usage,
            as_token_ids=request.return_tokens_as_token_ids,
            with_token_ids=request.return_token_ids,
            echo=request.echo,
        )

    def selected(self, chunks: Sequence[Sequence[TextChunk]]) -> Sequence[int]:
        """The indices of the choices to return: with best_of, the best ones of each prompt."""
        return select_best_of(chunks, candidates=self._request.candidates, n=self._request.n)

    def more_fields(self, chunks: Sequence[Sequence[TextChunk]]) -> Mapping[str, Any]:
        """Nothing: a completion has no other fields."""
        return {}

    def choice(self, position: int, choice: Choice, chunks: Sequence[TextChunk]) -> dict[str, Any]:
        """The object of one completion. Its text is one chunk, and its logprobs are already JSON."""
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

    def _ids(self, chunks: Sequence[TextChunk]) -> dict[str, Any]:
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
