"""Converts the responses of NVIDIA's ensemble to text chunks, and adds stop strings, counts and finish reasons."""

from __future__ import annotations

from llm_pipeline.protocol.messages import CompletionParameters, FinishReason, TextChunk
from llm_pipeline.text.assembler import RESERVE_TOKENS
from llm_pipeline.text.stop_strings import StopMatcher

_CUT = "\ufffd"  # U+FFFD, for part of a character


class CompletionText:
    """One completion. `context_length` is the maximum of prompt and completion tokens, None if unknown.

    The ensemble reports the number of tokens of a response, but no finish reason. A completion that has max_tokens
    tokens, or fills the context, ended for its length; a stop string in its text ended it there; otherwise the engine
    generated an end-of-sequence token, which its counts omit (its kernels do not advance on it) and the counts here
    include.
    """

    def __init__(
        self, parameters: CompletionParameters, *, max_tokens: int, context_length: int | None, is_cumulative: bool
    ) -> None:
        self._matcher = (
            StopMatcher(parameters.stop, includes_match=parameters.include_stop_str_in_output)
            if parameters.stop
            else None
        )
        self._streams = parameters.stream
        self._max_tokens = max_tokens
        self._context_length = context_length
        self._is_cumulative = is_cumulative
        self._seen = ""  # of cumulative text
        self._unsent = ""
        self._tokens = 0
        self._prompt_tokens: int | None = None
        self._has_sent_prompt_tokens = False
        self.finish_reason: FinishReason | None = None
        self.is_cancelled = False

    def push(self, text: str, tokens: int, prompt_tokens: int | None) -> TextChunk | None:
        """Adds a response with its number of tokens, and that of the prompt if reported. Returns a chunk to send, if any."""
        if self.finish_reason is not None:
            return None
        self._tokens += tokens
        if prompt_tokens is not None:
            self._prompt_tokens = prompt_tokens
        is_at_limit = self._tokens >= self._limit
        new_text, is_match = self._match(self._new_text(text, is_at_limit=is_at_limit))
        self._unsent += new_text
        if is_match:
            return self._finish(FinishReason.STOP)
        if is_at_limit:
            return self._end(FinishReason.LENGTH)
        return self._release() if self._streams else None

    def end(self) -> TextChunk | None:
        """Ends the completion after the last response. None if the finish reason has already been returned."""
        if self.finish_reason is not None:
            return None
        if self.is_cancelled:
            return self._finish(FinishReason.CANCELLED)
        self._tokens += 1  # the end-of-sequence token
        return self._end(FinishReason.STOP)

    @property
    def _limit(self) -> int:
        if self._context_length is None or self._prompt_tokens is None:
            return self._max_tokens
        return min(self._max_tokens, self._context_length - self._prompt_tokens)

    def _new_text(self, text: str, *, is_at_limit: bool) -> str:
        if not self._is_cumulative:
            return text.rstrip(_CUT) if is_at_limit else text
        known = text.rstrip(_CUT)  # more bytes may complete the character
        new = known[len(self._seen) :]
        self._seen = known if len(known) > len(self._seen) else self._seen
        return new

    def _match(self, text: str) -> tuple[str, bool]:
        if self._matcher is None:
            return text, False
        safe, end = self._matcher.feed(text)
        return safe, end is not None

    def _end(self, reason: FinishReason) -> TextChunk:
        if self._matcher is not None:
            self._unsent += self._matcher.flush()
        return self._finish(reason)

    def _finish(self, reason: FinishReason) -> TextChunk:
        self.finish_reason = reason
        text, self._unsent = self._unsent, ""
        return TextChunk(text, self._tokens, None, self._prompt_tokens, reason)

    def _release(self) -> TextChunk | None:
        """Returns the text that can be sent now. Near the limit it keeps one character: the last chunk must have text."""
        kept = 1 if self._tokens > self._limit - RESERVE_TOKENS else 0
        text, self._unsent = self._unsent[: len(self._unsent) - kept], self._unsent[len(self._unsent) - kept :]
        if not text:
            return None
        prompt = None if self._has_sent_prompt_tokens else self._prompt_tokens
        self._has_sent_prompt_tokens = True
        return TextChunk(text, self._tokens, None, prompt)
