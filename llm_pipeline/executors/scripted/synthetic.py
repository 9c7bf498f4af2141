"""Synthetic streams: endless cycles through a list of words, cut at each request's length.

All streams advance together, as arrays: a step costs a few array operations for one stream or for a thousand.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llm_pipeline.protocol.messages import (
    NO_INTEGERS,
    EngineStep,
    FinishReason,
    GenerationRequest,
    IntArray,
    RequestEnd,
)

_CYCLE = 997  # prime, so that streams of different prompts do not run in step
_NEVER = 2**62  # tokens; fits into an int64, whatever a client of decode sends


@dataclass(frozen=True)
class SyntheticText:
    """The text of one request: `length` words of the list, starting at `first` and wrapping around at its end."""

    first: int  # index of a word
    length: int  # tokens, below 2**63
    finish_reason: FinishReason


class SyntheticWords:
    """The words of synthetic text: distinct token ids."""

    def __init__(self, token_ids: Sequence[int]) -> None:
        self.token_ids = tuple(token_ids)
        self._indices = {token_id: index for index, token_id in enumerate(token_ids)}

    def text_for(self, request: GenerationRequest) -> SyntheticText:
        """Returns the text of a request; the prompt decides its first word.

        It ends at the first stop token after the first `min_tokens` tokens, or else at `max_tokens`.
        """
        count, max_tokens = len(self.token_ids), min(request.max_tokens, _NEVER)
        first = sum(request.prompt_ids) % _CYCLE % count
        min_tokens = request.sampling.min_tokens
        stops = [self._indices[token_id] for token_id in request.stop_token_ids if token_id in self._indices]
        to_stop = min((min_tokens + (index - first - min_tokens) % count + 1 for index in stops), default=None)
        if to_stop is not None and to_stop <= max_tokens:
            return SyntheticText(first, to_stop, FinishReason.STOP)
        return SyntheticText(first, max_tokens, FinishReason.LENGTH)


class SyntheticStreams:
    """The synthetic texts that are being generated. Not thread-safe.

    Rows are added and removed by making new arrays, because the sink keeps those of earlier steps.
    """

    def __init__(self, words: SyntheticWords) -> None:
        self._words = np.array(words.token_ids, np.int64)
        self._reasons: dict[int, FinishReason] = {}  # by request number
        self._numbers: IntArray = NO_INTEGERS  # int64, [streams], as the next two
        self._next: IntArray = NO_INTEGERS  # index of the next word
        self._left: IntArray = NO_INTEGERS  # tokens until the end

    def __len__(self) -> int:
        return len(self._numbers)

    def begin(self, texts: Sequence[tuple[int, SyntheticText]]) -> None:
        """Adds streams, with the numbers of their requests."""
        if not texts:
            return
        rows = np.array([(number, text.first, text.length) for number, text in texts], np.int64)
        self._reasons.update((number, text.finish_reason) for number, text in texts)
        self._numbers = np.concatenate((self._numbers, rows[:, 0]))
        self._next = np.concatenate((self._next, rows[:, 1]))
        self._left = np.concatenate((self._left, rows[:, 2]))

    def remove(self, numbers: Collection[int]) -> None:
        """Removes the streams of these requests; other numbers are ignored."""
        removed = [number for number in numbers if self._reasons.pop(number, None) is not None]
        if removed:
            self._keep(np.isin(self._numbers, removed, invert=True))

    def step(self) -> EngineStep:
        """Returns the next token of every stream, and the ends of those that are complete."""
        numbers = self._numbers
        token_ids = self._words[self._next]
        self._next = (self._next + 1) % len(self._words)
        self._left = self._left - 1
        is_complete = self._left <= 0
        if not is_complete.any():
            return EngineStep(numbers, token_ids)
        ends = [RequestEnd(number, self._reasons.pop(number)) for number in numbers[is_complete].tolist()]
        self._keep(~is_complete)
        return EngineStep(numbers, token_ids, ends=ends)

    def clear(self) -> None:
        """Removes all streams."""
        self._reasons.clear()
        self._numbers = self._next = self._left = NO_INTEGERS

    def _keep(self, is_kept: npt.NDArray[np.bool_]) -> None:
        self._numbers, self._next, self._left = (row[is_kept] for row in (self._numbers, self._next, self._left))
