"""Collects the new tokens of one request until its next chunk is taken.

No threads and no locks here: an outbox is guarded by the registry of live requests (live_requests.py), except for
`is_scheduled`, which belongs to the sender pool.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

from llm_pipeline.protocol.errors import internal_error
from llm_pipeline.protocol.messages import (
    FinishReason,
    GenerationRequest,
    PromptLogprobs,
    StepOutput,
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
        "cancel_ticks",
        "client_id",
        "ending",
        "index",
        "is_cancelled",
        "is_scheduled",
        "key",
        "logprobs",
        "prompt_logprobs",
        "sender",
        "stop_string_scan",
        "text_options",
        "token_ids",
        "tokens_left",
        "top_logprobs",
    )

    def __init__(
        self,
        request: GenerationRequest,
        sender: ChunkSender,
        client_id: str | None = None,
        stop_string_scan: StopStringScan | None = None,
    ) -> None:
        self.key = request.key
        self.sender = sender
        self.client_id = client_id
        self.stop_string_scan = stop_string_scan
        self.text_options: TextOptions | None = request.text_options
        self.tokens_left = request.max_tokens
        self.token_ids: list[int] = []
        self.logprobs: list[float | None] = []  # this and the next two stay empty unless the request asks for them
        self.top_logprobs: list[TopLogprobs] = []
        self.prompt_logprobs: PromptLogprobs | None = None
        self.ending: StepOutput | None = None  # set at the end, None again once the final chunk is taken
        self.index = 0  # of the next chunk
        self.is_scheduled = False  # queued for a sender thread, or being sent by one
        self.is_cancelled = False
        self.cancel_ticks = 0  # housekeeping ticks since the cancellation

    @property
    def is_ready(self) -> bool:
        """Whether there is something to send now. Without streaming, everything is sent at the end."""
        if self.ending is not None:
            return True
        return bool(self.token_ids) and (self.text_options is None or self.text_options.stream)

    def gather(self, step: StepOutput, vocab_size: int) -> None:
        """Adds the output of one engine step. A request that reaches max_tokens ends here even if the engine goes on.

        Raises ValueError if a token id is not an integer from 0 to vocab_size - 1: such ids would silently become wrong
        or missing text.
        """
        for token_id in step.token_ids:
            if type(token_id) is not int or not 0 <= token_id < vocab_size:
                raise ValueError(f"a token id outside 0 to {vocab_size - 1}")
        allowed = step.token_ids[: self.tokens_left]
        self.token_ids.extend(allowed)
        self.tokens_left -= len(allowed)
        if step.logprobs or step.prompt_logprobs is not None:
            self.logprobs.extend(step.logprobs[: len(allowed)])
            self.top_logprobs.extend(step.top_logprobs[: len(allowed)])
            self.prompt_logprobs = step.prompt_logprobs or self.prompt_logprobs
        if step.is_final:
            self.ending = step
        elif self.tokens_left == 0:
            self.ending = StepOutput(step.key, finish_reason=FinishReason.LENGTH)

    def take_chunk(self, max_tokens: int | None = None, ack_address: str | None = None) -> TokenChunk:
        """Removes and returns the next chunk: all unsent tokens, or at most `max_tokens` of them."""
        if max_tokens is None:
            taken, self.token_ids = tuple(self.token_ids), []
        else:
            taken, self.token_ids = tuple(self.token_ids[:max_tokens]), self.token_ids[max_tokens:]
        ending = None
        if not self.token_ids:
            ending, self.ending = self.ending, None
        chunk = TokenChunk(
            key=self.key,
            index=self.index,
            token_ids=taken,
            text_options=self.text_options if self.index == 0 else None,
            finish_reason=ending.finish_reason if ending else None,
            error=ending.error if ending else None,
            ack_address=ack_address,
        )
        self.index += 1
        if self.logprobs or self.prompt_logprobs is not None:
            return self._with_logprobs(chunk)
        return chunk

    def take_error(self) -> TokenChunk:
        """Drops all unsent output and returns a final chunk with an internal error."""
        self.token_ids, self.ending = [], None
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
