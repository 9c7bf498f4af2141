"""Collects the new tokens of one request that has its own response stream until its next chunk is taken.

No threads and no locks here: an outbox is guarded by the registry of live requests (live_requests.py), except for
`is_scheduled`, which belongs to the sender pool.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from llm_pipeline.protocol.errors import internal_error
from llm_pipeline.protocol.messages import (
    GenerationRequest,
    PromptLogprobs,
    RequestEnd,
    RequestLogprobs,
    TextOptions,
    TokenChunk,
    TopLogprobs,
)
from llm_pipeline.stages.decode.stop_string_scanner import StopStringScan


class ChunkSender(Protocol):
    """Sends the chunks of one request to postprocess. `send` may block for the duration of a handshake with Triton."""

    def send(self, chunk: TokenChunk) -> None: ...


class Outbox:
    """The unsent output of one request, from its registration until its final chunk has been taken."""

    __slots__ = (
        "end",
        "index",
        "is_scheduled",
        "key",
        "logprobs",
        "number",
        "prompt_logprobs",
        "sender",
        "stop_string_scan",
        "text_options",
        "token_ids",
        "top_logprobs",
    )

    def __init__(self, request: GenerationRequest, sender: ChunkSender) -> None:
        self.key = request.key
        self.number = -1  # set at registration
        self.sender = sender
        self.stop_string_scan: StopStringScan | None = None
        self.text_options: TextOptions | None = request.text_options
        self.token_ids: list[int] = []
        self.logprobs: list[float | None] = []  # this and the next two stay empty unless the request asks for them
        self.top_logprobs: list[TopLogprobs] = []
        self.prompt_logprobs: PromptLogprobs | None = None
        self.end: RequestEnd | None = None  # set at the end, None again once the final chunk is taken
        self.index = 0  # of the next chunk
        self.is_scheduled = False  # queued for a sender thread, or being sent by one

    @property
    def is_ready(self) -> bool:
        """Whether there is something to send now. Without streaming, everything is sent at the end."""
        if self.end is not None:
            return True
        return bool(self.token_ids) and (self.text_options is None or self.text_options.stream)

    def add(self, token_ids: Sequence[int]) -> None:
        """Adds the tokens of one engine step."""
        self.token_ids += token_ids
        if self.stop_string_scan is not None:
            self.stop_string_scan.scan(token_ids)

    def add_logprobs(self, logprobs: RequestLogprobs, count: int) -> None:
        """Adds the logprobs of the `count` tokens of one engine step."""
        self.logprobs += logprobs.logprobs[:count]
        self.top_logprobs += logprobs.top_logprobs[:count]
        self.prompt_logprobs = logprobs.prompt_logprobs or self.prompt_logprobs

    def take_chunk(self, max_tokens: int | None = None, ack_address: str | None = None) -> TokenChunk:
        """Removes and returns the next chunk: all unsent tokens, or at most `max_tokens` of them."""
        if max_tokens is None:
            taken, self.token_ids = tuple(self.token_ids), []
        else:
            taken, self.token_ids = tuple(self.token_ids[:max_tokens]), self.token_ids[max_tokens:]
        end = None
        if not self.token_ids:
            end, self.end = self.end, None
        chunk = TokenChunk(
            key=self.key,
            index=self.index,
            token_ids=taken,
            text_options=self.text_options if self.index == 0 else None,
            finish_reason=end.finish_reason if end else None,
            error=end.error if end else None,
            ack_address=ack_address,
        )
        self.index += 1
        if self.logprobs or self.prompt_logprobs is not None:
            return self._with_logprobs(chunk)
        return chunk

    def take_error(self) -> TokenChunk:
        """Drops all unsent output and returns a final chunk with an internal error."""
        self.token_ids, self.end = [], None
        text_options = self.text_options if self.index == 0 else None
        return TokenChunk(self.key, self.index, (), text_options=text_options, error=internal_error())

    def _with_logprobs(self, chunk: TokenChunk) -> TokenChunk:
        count = len(chunk.token_ids)
        complete = replace(
            chunk,
            logprobs=tuple(self.logprobs[:count]),
            top_logprobs=tuple(self.top_logprobs[:count]),
            prompt_logprobs=self.prompt_logprobs,
        )
        del self.logprobs[:count], self.top_logprobs[:count]
        self.prompt_logprobs = None
        return complete
