"""Builds the server-sent events of a chat by hand, as response/sse.py does those of a completion.

The first event of each choice has the role. An answer that is all content takes the short way: everything that is the
same in all of its chunks is encoded once, and only the text for each chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import orjson

from frontend.chat.logprobs import token_logprobs
from frontend.chat.parsing.answer_parser import (
    AnswerParser,
    ContentDelta,
    Delta,
    ReasoningDelta,
    ToolCallStart,
)
from frontend.generation.completion_run import Choice
from frontend.response.sse import on_one_line, text_json
from frontend.response.usage import usage_object
from llm_pipeline.protocol.messages import FinishReason, TextChunk

_PLAIN = b'},"logprobs":null,"finish_reason":null'
_ROLE = b'"role":"assistant","content":"","refusal":null'


class ChatFrames:
    """Encodes the events of one stream. All chunks begin with the same `head`: id, object, created and model.

    `num_top` is the number of most likely tokens to list, None without logprobs.
    """

    def __init__(
        self,
        head: Mapping[str, Any],
        *,
        include_usage: bool,
        continuous_usage: bool,
        num_top: int | None,
        with_token_ids: bool,
        with_reasoning: bool,
        new_parser: Callable[[], AnswerParser] | None,
    ) -> None:
        self._opening = b"data: " + orjson.dumps(head)[:-1] + b',"choices":['
        self._null_usage_end = b'}],"usage":null}\n\n' if include_usage else b"}]}\n\n"
        self._continuous_usage = continuous_usage
        self._num_top = num_top or 0
        self._with_token_ids = with_token_ids
        self._with_reasoning = with_reasoning
        self._new_parser = new_parser
        self._plain_end = _PLAIN + self._null_usage_end
        self._has_plain_events = not (continuous_usage or with_token_ids or new_parser)
        self._prefixes: dict[int, bytes] = {}
        self._parsers: dict[int, AnswerParser] = {}

    def chunk(self, choice: Choice, chunk: TextChunk) -> bytes:
        """The events of one chunk; none for a chunk without text, as for part of a character or of a stop string."""
        prefix = self._prefixes.get(choice.index)
        if prefix is None:
            return self._first_event(choice, chunk) + self.chunk(choice, chunk)
        if self._has_plain_events and chunk.finish_reason is None and chunk.logprobs_json is None:  # nearly all
            return prefix + b'"content":' + text_json(chunk.text) + self._plain_end if chunk.text else b""
        return self._events(choice, chunk, prefix)

    def _first_event(self, choice: Choice, chunk: TextChunk) -> bytes:
        """The event with the role, which has the ids of the prompt, too, as in vLLM."""
        prefix = self._opening + b'{"index":%d,"delta":{' % choice.index
        self._prefixes[choice.index] = prefix
        if self._new_parser is not None:
            self._parsers[choice.index] = self._new_parser()
        end = self._usage_end(choice, chunk) if self._continuous_usage else self._null_usage_end
        if self._with_token_ids and chunk.prompt_token_ids is not None:
            ids = b'}],"prompt_token_ids":' + orjson.dumps(chunk.prompt_token_ids)
            end = ids + end.removeprefix(b"}]")
        return prefix + _ROLE + _PLAIN + end

    def _events(self, choice: Choice, chunk: TextChunk, prefix: bytes) -> bytes:
        end = self._usage_end(choice, chunk) if self._continuous_usage else self._null_usage_end
        details = self._details(chunk)
        parser = self._parsers.get(choice.index)
        deltas = self._deltas(parser, chunk)
        if details is not None and not deltas:
            deltas = [b""]
        events = []
        for delta in deltas:
            events.append(prefix + delta + b"}" + (details or b',"logprobs":null') + b',"finish_reason":null' + end)
            details = None  # on the first event only
        if chunk.finish_reason is not None:
            reason = finish_reason_of(chunk.finish_reason, parser)
            events.append(prefix + b'},"logprobs":null,"finish_reason":"%s"' % reason.encode() + end)
        return b"".join(events)

    def _details(self, chunk: TextChunk) -> bytes | None:
        """The logprobs and the token ids of a chunk as JSON; None if it has neither."""
        ids = b',"token_ids":' + orjson.dumps(chunk.token_ids) if self._with_token_ids and chunk.token_ids else b""
        entries = token_logprobs(chunk.logprobs_json, self._num_top) if chunk.logprobs_json else None
        if not entries:
            return b',"logprobs":null' + ids if ids else None
        return b',"logprobs":' + on_one_line(orjson.dumps({"content": entries, "refusal": None})) + ids

    def _deltas(self, parser: AnswerParser | None, chunk: TextChunk) -> list[bytes]:
        """The members of the `delta` objects of a chunk as JSON."""
        if parser is None:
            return [b'"content":' + text_json(chunk.text)] if chunk.text else []
        deltas: Sequence[Delta] = parser.feed(chunk.text) if chunk.text else ()
        if chunk.finish_reason is not None:
            deltas = (*deltas, *parser.finish(chunk.finish_reason))
        return [
            on_one_line(orjson.dumps(_delta_object(delta)))[1:-1]
            for delta in deltas
            if self._with_reasoning or not isinstance(delta, ReasoningDelta)
        ]

    def _usage_end(self, choice: Choice, chunk: TextChunk) -> bytes:
        usage = usage_object(choice.prompt_tokens, chunk.completion_tokens)
        return b'}],"usage":' + orjson.dumps(usage) + b"}\n\n"

    def usage(self, prompt_tokens: int, completion_tokens: int) -> bytes:
        """The event after the last chunk of a stream with `include_usage`."""
        return self._opening + b'],"usage":' + orjson.dumps(usage_object(prompt_tokens, completion_tokens)) + b"}\n\n"


def finish_reason_of(reason: FinishReason, parser: AnswerParser | None) -> str:
    """The finish reason for the client: `tool_calls` if the model stopped behind a complete call."""
    if reason is FinishReason.STOP and parser is not None and parser.has_complete_call:
        return "tool_calls"
    return reason.value


def _delta_object(delta: Delta) -> dict[str, Any]:
    if isinstance(delta, ContentDelta):
        return {"content": delta.text}
    if isinstance(delta, ReasoningDelta):
        return {"reasoning_content": delta.text}
    if isinstance(delta, ToolCallStart):
        function = {"name": delta.name, "arguments": ""}
        call = {"index": delta.index, "id": delta.call_id, "type": "function", "function": function}
        return {"tool_calls": [call]}
    return {"tool_calls": [{"index": delta.index, "function": {"arguments": delta.text}}]}
