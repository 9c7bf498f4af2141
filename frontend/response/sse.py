"""Builds the server-sent events of a completion by hand: this code runs for every chunk.

Servers that create a pydantic model per token are limited to a few thousand events per second. Here everything that is
the same in all chunks of a choice is encoded once, and only the text for each chunk.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import orjson

from frontend.generation.completion_run import Choice
from frontend.response.errors import error_object
from frontend.response.usage import usage_object
from llm_pipeline.protocol.errors import PipelineError
from llm_pipeline.protocol.messages import TextChunk
from llm_pipeline.text.token_strings import as_token_id

DONE = b"data: [DONE]\n\n"
KEEPALIVE = b": keep-alive\n\n"

# JSON allows these characters unescaped, and the SSE standard does not end lines there, but `str.splitlines` and with
# it httpx's `iter_lines` do, so that clients would read half an event (florimondmanca/httpx-sse#34).
_OTHER_LINE_ENDS = ((b"\xc2\x85", rb"\u0085"), (b"\xe2\x80\xa8", rb"\u2028"), (b"\xe2\x80\xa9", rb"\u2029"))
_OTHER_LINE_END = re.compile(rb"\xc2\x85|\xe2\x80[\xa8\xa9]")

_NO_LOGPROBS = b',"logprobs":null'
_UNFINISHED = b',"finish_reason":null'
_FINISHED = {reason: b',"finish_reason":"%s"' % reason.encode() for reason in ("stop", "length")}
_PLAIN_UNFINISHED = _NO_LOGPROBS + _UNFINISHED
_PLAIN_FINISHED = {reason: _NO_LOGPROBS + ending for reason, ending in _FINISHED.items()}


def token_id_text(token_ids: tuple[int, ...]) -> str:
    """The text of tokens when they are returned as `token_id:<id>`."""
    return "".join(map(as_token_id, token_ids))


def text_json(text: str) -> bytes:
    """The text as a JSON string on one line."""
    return on_one_line(orjson.dumps(text))


def on_one_line(encoded: bytes) -> bytes:
    """The same JSON with the characters escaped that some clients take for the end of a line."""
    if not encoded.isascii() and _OTHER_LINE_END.search(encoded):
        for character, escaped in _OTHER_LINE_ENDS:
            encoded = encoded.replace(character, escaped)
    return encoded


def error_event(error: PipelineError) -> bytes:
    """The event of a failure after the first token. The caller appends DONE."""
    return b"data: " + orjson.dumps({"error": error_object(error)}) + b"\n\n"


class ChunkFrames:
    """Encodes the events of one stream. All chunks begin with the same `head`: id, object, created and model."""

    def __init__(
        self,
        head: Mapping[str, Any],
        *,
        include_usage: bool,
        continuous_usage: bool,
        as_token_ids: bool,
        with_token_ids: bool,
        echo: bool,
    ) -> None:
        self._opening = b"data: " + orjson.dumps(head)[:-1] + b',"choices":['
        self._null_usage_end = b'}],"usage":null}\n\n' if include_usage else b"}]}\n\n"
        self._continuous_usage = continuous_usage
        self._as_token_ids = as_token_ids
        self._with_token_ids = with_token_ids
        self._echo = echo
        self._plain_end = _PLAIN_UNFINISHED + self._null_usage_end
        self._has_plain_events = not (continuous_usage or as_token_ids or with_token_ids)
        self._prefixes: dict[int, bytes] = {}

    def chunk(self, choice: Choice, chunk: TextChunk) -> bytes:
        """The event of one chunk; empty for a chunk without text, as for part of a character or of a stop string."""
        if self._has_plain_events and chunk.finish_reason is None and chunk.logprobs_json is None:  # nearly all
            return self._prefix(choice) + text_json(chunk.text) + self._plain_end if chunk.text else b""
        if self._as_token_ids:
            return self._token_id_chunk(choice, chunk)
        if self._with_token_ids:
            return self._event(choice, chunk, text_json(chunk.text) + self._ids(chunk))
        if not chunk.text and chunk.finish_reason is None and not self._continuous_usage:
            return b""
        return self._event(choice, chunk, text_json(chunk.text))

    def _token_id_chunk(self, choice: Choice, chunk: TextChunk) -> bytes:
        in_text = chunk.token_ids or ()
        if self._echo and chunk.prompt_token_ids is not None:
            in_text = (*chunk.prompt_token_ids, *in_text)
        if not in_text and chunk.finish_reason is None:
            return b""
        ids = self._ids(chunk) if self._with_token_ids else b',"token_ids":' + orjson.dumps(in_text)
        return self._event(choice, chunk, orjson.dumps(token_id_text(in_text)) + ids)

    def _ids(self, chunk: TextChunk) -> bytes:
        """The ids of the completion, and on the first chunk those of the prompt beside them, as in vLLM."""
        ids = b',"token_ids":' + orjson.dumps(chunk.token_ids or ())
        if chunk.prompt_token_ids is None:
            return ids
        return ids + b',"prompt_token_ids":' + orjson.dumps(chunk.prompt_token_ids)

    def _event(self, choice: Choice, chunk: TextChunk, text_fields: bytes) -> bytes:
        reason = chunk.finish_reason
        if chunk.logprobs_json is None:
            middle = _PLAIN_UNFINISHED if reason is None else _PLAIN_FINISHED[reason.value]
        else:  # postprocess has already encoded it as JSON
            ending = _UNFINISHED if reason is None else _FINISHED[reason.value]
            middle = b',"logprobs":' + on_one_line(chunk.logprobs_json) + ending
        end = self._usage_end(choice, chunk) if self._continuous_usage else self._null_usage_end
        return self._prefix(choice) + text_fields + middle + end

    def _prefix(self, choice: Choice) -> bytes:
        prefix = self._prefixes.get(choice.index)
        if prefix is None:
            prefix = self._prefixes[choice.index] = self._opening + b'{"index":%d,"text":' % choice.index
        return prefix

    def _usage_end(self, choice: Choice, chunk: TextChunk) -> bytes:
        usage = usage_object(choice.prompt_tokens, chunk.completion_tokens)
        return b'}],"usage":' + orjson.dumps(usage) + b"}\n\n"

    def usage(self, prompt_tokens: int, completion_tokens: int) -> bytes:
        """The event after the last chunk of a stream with `include_usage`."""
        return self._opening + b'],"usage":' + orjson.dumps(usage_object(prompt_tokens, completion_tokens)) + b"}\n\n"
