"""One completion of NVIDIA's ensemble as our chunks: text, stop strings, counts, and a finish reason that it lacks."""

from __future__ import annotations

from llm_pipeline.protocol.messages import CompletionParameters, FinishReason, TextChunk
from llm_pipeline.text.assembler import RESERVE_TOKENS
from llm_pipeline.text.stop_strings import StopMatcher

_CUT = "\ufffd"  # what a tokenizer writes for a part of a character


class CompletionText:
    """The completion so far. `most_tokens` is its max_tokens, `context` that of the model, None when not known.

    The ensemble says how many tokens a response holds, and not why it was the last. Having made max_tokens, or filled
    the context, the completion ended for its length; a stop string in its text ended it there; and otherwise the
    engine made an end token, which its counts leave out (its kernels don't advance on it) and ours do not.
    """

    def __init__(
        self, parameters: CompletionParameters, *, most_tokens: int, context: int | None, is_cumulative: bool
    ) -> None:
        self._matcher = (
            StopMatcher(parameters.stop, includes_match=parameters.include_stop_str_in_output)
            if parameters.stop
            else None
        )
        self._streams = parameters.stream
        self._most_tokens = most_tokens
        self._context = context
        self._is_cumulative = is_cumulative
        self._seen = ""  # of cumulative text
        self._unsent = ""
        self._tokens = 0
        self._prompt_tokens: int | None = None
        self._has_told_prompt = False
        self.finish_reason: FinishReason | None = None
        self.is_cancelled = False

    def push(self, text: str, tokens: int, prompt_tokens: int | None) -> TextChunk | None:
        """The next response: its text, how many tokens it holds, and the prompt's, if said. None: nothing to tell."""
        if self.finish_reason is not None:
            return None
        self._tokens += tokens
        if prompt_tokens is not None:
            self._prompt_tokens = prompt_tokens
        is_at_limit = self._tokens >= self._limit
        found, is_match = self._match(self._new_text(text, is_at_limit=is_at_limit))
        self._unsent += found
        if is_match:
            return self._finish(FinishReason.STOP)
        if is_at_limit:
            return self._end(FinishReason.LENGTH)
        return self._release() if self._streams else None

    def end(self) -> TextChunk | None:
        """The responses are over. None when the end was told already."""
        if self.finish_reason is not None:
            return None
        if self.is_cancelled:
            return self._finish(FinishReason.CANCELLED)
        self._tokens += 1  # the end token
        return self._end(FinishReason.STOP)

    @property
    def _limit(self) -> int:
        if self._context is None or self._prompt_tokens is None:
            return self._most_tokens
        return min(self._most_tokens, self._context - self._prompt_tokens)

    def _new_text(self, text: str, *, is_at_limit: bool) -> str:
        if not self._is_cumulative:
            return text.rstrip(_CUT) if is_at_limit else text
        known = text.rstrip(_CUT)  # it may become a character yet
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
        """What can be sent now. Near the limit a character is kept back, for the last chunk must have text."""
        kept = 1 if self._tokens > self._limit - RESERVE_TOKENS else 0
        text, self._unsent = self._unsent[: len(self._unsent) - kept], self._unsent[len(self._unsent) - kept :]
        if not text:
            return None
        prompt = None if self._has_told_prompt else self._prompt_tokens
        self._has_told_prompt = True
        return TextChunk(text, self._tokens, None, prompt)
