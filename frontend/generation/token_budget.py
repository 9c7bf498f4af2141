"""Limits the tokens in flight of one API key: what its running choices may cost the engine at most.

The front end has no tokenizer, so it counts upper bounds: a prompt of token ids by its length, a text by its UTF-8
bytes, because a token is at least one byte; plus `max_tokens`; and no choice for more than the context length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from frontend.multiprocess.shared_state import SharedState
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.protocol.messages import CompletionParameters


class TokenBudget:
    """The tokens in flight of one key, of all workers together."""

    def __init__(self, workers: SharedState, counter: str) -> None:
        self._total = workers.counter(counter)

    def reserve(self, tokens: Sequence[int], limit: int) -> ReservedTokens:
        """A reservation of `tokens[i]` for choice i, to be acquired with the choices' slots.

        Raises PipelineError (400) if it exceeds the limit by itself.
        """
        if sum(tokens) > limit:
            raise PipelineError(
                ErrorCode.VALUE_OUT_OF_RANGE,
                f"This request may need {sum(tokens)} tokens: for each choice the prompt, where each byte of text "
                f"counts, plus max_tokens. This API key may have {limit} in flight. Lower max_tokens or send less.",
                param="max_tokens",
            )
        return ReservedTokens(self, tokens, limit)

    @property
    def total(self) -> int:
        """The tokens in flight of all workers."""
        return self._total.total

    def add(self, tokens: int) -> None:
        """Adds to the tokens in flight."""
        self._total.add(tokens)


class ReservedTokens:
    """The tokens of one request. Each choice releases its own once."""

    def __init__(self, budget: TokenBudget, tokens: Sequence[int], limit: int) -> None:
        self._budget = budget
        self._tokens = tokens
        self._limit = limit

    def refusal(self) -> PipelineError | None:
        """The error (429) if there is no room for these tokens now."""
        if self._budget.total + sum(self._tokens) <= self._limit:
            return None
        return PipelineError(
            ErrorCode.RATE_LIMIT_EXCEEDED,
            f"This API key is at its limit of {self._limit} tokens in flight. "
            "Retry after the delay in the Retry-After header.",
        )

    def take(self) -> None:
        """Counts all of them."""
        self._budget.add(sum(self._tokens))

    def release(self, choice: int) -> None:
        """The engine has finished its work for the choice with this index."""
        self._budget.add(-self._tokens[choice])


@dataclass(frozen=True)
class TokenContext:
    """What bounds the tokens of a choice besides its own fields."""

    context_length: int | None  # None: unknown
    default_max_tokens: int  # of requests without max_tokens; 0 fills the context

    def most_tokens(self, parameters: CompletionParameters) -> int:
        """Upper bound of the tokens of one choice."""
        prompt = parameters.token_ids if parameters.prompt_text is None else parameters.prompt_text.encode()
        tokens = len(prompt or ()) + len((parameters.suffix or "").encode())
        limit = parameters.max_tokens
        if limit is None:
            limit = self.default_max_tokens or self.context_length or 0
        return tokens + limit if self.context_length is None else min(tokens + limit, self.context_length)
