"""The form of the answer to a chat: a message beside its logprobs, or the deltas of one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from frontend.chat.frames import ChatFrames, finish_reason_of
from frontend.chat.logprobs import token_logprobs
from frontend.chat.parsing.answer_parser import (
    AnswerParser,
    ContentDelta,
    Delta,
    ReasoningDelta,
    ToolCallStart,
)
from frontend.chat.schema import ChatCompletionRequest
from frontend.generation.completion_run import Choice
from llm_pipeline.protocol.messages import FinishReason, TextChunk


class ChatAnswer:
    """The form of the answer to one chat request. `new_parser` makes the parser of a choice; None: all is content."""

    id_prefix = "chatcmpl-"
    object_type = "chat.completion"
    chunk_type = "chat.completion.chunk"
    schema_name = "ChatCompletion"

    def __init__(self, request: ChatCompletionRequest, new_parser: Callable[[], AnswerParser] | None) -> None:
        self._request = request
        self._new_parser = new_parser
        self._num_top = (request.top_logprobs or 0) if request.logprobs else None

    @property
    def model(self) -> str:
        """The model under the name in the request."""
        return self._request.model

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return self._request.includes_usage

    def frames(self, head: Mapping[str, Any]) -> ChatFrames:
        """The encoder of a stream."""
        request = self._request
        return ChatFrames(
            head,
            include_usage=request.includes_usage,
            continuous_usage=request.has_continuous_usage,
            num_top=self._num_top,
            with_token_ids=request.return_token_ids,
            with_reasoning=request.include_reasoning,
            new_parser=self._new_parser,
        )

    def selected(self, chunks: Sequence[Sequence[TextChunk]]) -> Sequence[int]:
        """The indices of the choices to return: all."""
        return range(len(chunks))

    def choice(self, position: int, choice: Choice, chunks: Sequence[TextChunk]) -> dict[str, Any]:
        """The object of one choice."""
        text = "".join(chunk.text for chunk in chunks)
        reason = choice.finish_reason or FinishReason.STOP
        parser = None if self._new_parser is None else self._new_parser()
        deltas = (ContentDelta(text),) if parser is None else (*parser.feed(text), *parser.finish(reason))
        logprobs = [
            entry
            for chunk in chunks
            if chunk.logprobs_json and self._num_top is not None
            for entry in token_logprobs(chunk.logprobs_json, self._num_top)
        ]
        fields: dict[str, Any] = {
            "index": position,
            "message": self._message(deltas),
            "logprobs": None if self._num_top is None else {"content": logprobs, "refusal": None},
            "finish_reason": finish_reason_of(reason, parser),
        }
        if self._request.return_token_ids:
            fields["token_ids"] = [token_id for chunk in chunks for token_id in chunk.token_ids or ()]
        return fields

    def more_fields(self, chunks: Sequence[Sequence[TextChunk]]) -> Mapping[str, Any]:
        """With return_token_ids, the ids of the prompt, which all choices share."""
        if not self._request.return_token_ids:
            return {}
        every = (chunk for of_choice in chunks for chunk in of_choice)
        return {"prompt_token_ids": next((chunk.prompt_token_ids for chunk in every if chunk.prompt_token_ids), ())}

    def _message(self, deltas: Sequence[Delta]) -> dict[str, Any]:
        content = "".join(delta.text for delta in deltas if isinstance(delta, ContentDelta))
        reasoning = "".join(delta.text for delta in deltas if isinstance(delta, ReasoningDelta))
        calls = _tool_calls(deltas)
        message: dict[str, Any] = {"role": "assistant", "content": content or (None if calls else ""), "refusal": None}
        if reasoning and self._request.include_reasoning:
            message["reasoning_content"] = reasoning
        if calls:
            message["tool_calls"] = calls
        return message


def _tool_calls(deltas: Sequence[Delta]) -> list[dict[str, Any]]:
    calls: list[dict[str, Any]] = []
    arguments: list[list[str]] = []
    for delta in deltas:
        if isinstance(delta, ToolCallStart):
            calls.append({"id": delta.call_id, "type": "function", "function": {"name": delta.name}})
            arguments.append([])
        elif not isinstance(delta, ContentDelta | ReasoningDelta):
            arguments[delta.index].append(delta.text)
    for call, parts in zip(calls, arguments, strict=True):
        call["function"]["arguments"] = "".join(parts)
    return calls
