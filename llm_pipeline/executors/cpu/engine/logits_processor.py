"""What a request changes about the logits before a token is picked: bias, bans and penalties.

In vLLM's order: logit_bias, bad_words and min_tokens; repetition_penalty; then presence_penalty and frequency_penalty.
Temperature and the filters come after (sampler.py), so that all of this counts for greedy requests, too.

What is known about the tokens so far is kept up to date in arrays of the vocabulary's size: a step costs the same
however long the output is, and nothing at all for a request that asks for none of this.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from llm_pipeline.protocol.messages import SamplingParams

Logits = npt.NDArray[np.float32]  # [vocab_size]
_NEUTRAL = SamplingParams()


class LogitsProcessor:
    """The edits of one request, which goes on token by token."""

    @classmethod
    def of(cls, sampling: SamplingParams, prompt_ids: Sequence[int], end_ids: Sequence[int]) -> LogitsProcessor | None:
        """None when the request asks for none."""
        names = ("repetition_penalty", "presence_penalty", "frequency_penalty", "min_tokens", "logit_bias", "bad_words")
        if all(getattr(sampling, name) == getattr(_NEUTRAL, name) for name in names):
            return None
        return cls(sampling, prompt_ids, end_ids)

    def __init__(self, sampling: SamplingParams, prompt_ids: Sequence[int], end_ids: Sequence[int]) -> None:
        self._sampling = sampling
        self._prompt_ids = prompt_ids
        self._end_ids = list(end_ids)
        self._generated: list[int] = []
        # Made with the first logits: requests that wait need no arrays.
        self._bias: Logits | None = None  # what to add before the repetition penalty
        self._penalty: Logits | None = None  # what to take away after it
        self._counted: set[int] = set()  # ids with a penalty
        self._seen: npt.NDArray[np.bool_] | None = None  # in the prompt or the output
        self._endings: defaultdict[int, list[tuple[tuple[int, ...], int]]] = defaultdict(list)
        for sequence in sampling.bad_words:
            if len(sequence) > 1:
                self._endings[sequence[-2]].append((sequence[:-1], sequence[-1]))

    def apply(self, logits: Logits) -> Logits:
        """The edited logits of the next token, as an array of their own."""
        sampling = self._sampling
        bias = self._make_arrays(logits.size) if self._bias is None else self._bias
        edited: Logits = logits + bias
        if self._generated:
            for start, banned in self._endings.get(self._generated[-1], ()):
                if tuple(self._generated[-len(start) :]) == start:
                    edited[banned] = -np.inf
        if len(self._generated) < sampling.min_tokens:
            edited[self._end_ids] = -np.inf
        if self._seen is not None:
            seen = edited[self._seen]
            factor = np.float32(sampling.repetition_penalty)
            edited[self._seen] = np.where(seen > 0, seen / factor, seen * factor)
        if self._penalty is not None:
            edited -= self._penalty
        return edited

    def note(self, token_id: int) -> None:
        """This token was picked."""
        self._generated.append(token_id)
        if self._seen is not None:
            self._seen[token_id] = True
        if self._penalty is not None:
            sampling = self._sampling
            if token_id not in self._counted:
                self._counted.add(token_id)
                self._penalty[token_id] = sampling.presence_penalty
            self._penalty[token_id] += sampling.frequency_penalty

    def _make_arrays(self, vocab_size: int) -> Logits:
        sampling = self._sampling
        self._bias = np.zeros(vocab_size, dtype=np.float32)
        for token_id, value in sampling.logit_bias:
            self._bias[token_id] += value
        for sequence in sampling.bad_words:
            if len(sequence) == 1:
                self._bias[sequence[0]] = -np.inf
        if sampling.presence_penalty or sampling.frequency_penalty:
            self._penalty = np.zeros(vocab_size, dtype=np.float32)
        if sampling.repetition_penalty != _NEUTRAL.repetition_penalty:
            self._seen = np.zeros(vocab_size, dtype=np.bool_)
            self._seen[list(self._prompt_ids)] = True
        return self._bias
