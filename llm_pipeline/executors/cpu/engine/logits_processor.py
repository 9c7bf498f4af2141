"""Bias, bans and penalties: changes that a request makes to the logits before a token is sampled.

In vLLM's order: logit_bias, bad_words and min_tokens; repetition_penalty; then presence_penalty and frequency_penalty.
Temperature and the filters come after (sampler.py), so that all of this applies to greedy requests, too.

The state of the tokens so far is kept in arrays of the vocabulary's size: a step costs the same however long the output
is, and nothing at all for a request that uses none of these parameters.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from llm_pipeline.protocol.messages import SamplingParams

Logits = npt.NDArray[np.float32]  # [vocab_size]
_NEUTRAL = SamplingParams()
_PARAMETERS = (
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "min_tokens",
    "logit_bias",
    "bad_words",
)


class LogitsProcessor:
    """Processes the logits of one request, token by token."""

    @classmethod
    def for_request(
        cls, sampling: SamplingParams, prompt_ids: Sequence[int], stop_token_ids: Sequence[int]
    ) -> LogitsProcessor | None:
        """Returns None if the request changes no logits."""
        if all(getattr(sampling, name) == getattr(_NEUTRAL, name) for name in _PARAMETERS):
            return None
        return cls(sampling, prompt_ids, stop_token_ids)

    def __init__(self, sampling: SamplingParams, prompt_ids: Sequence[int], stop_token_ids: Sequence[int]) -> None:
        self._sampling = sampling
        self._prompt_ids = prompt_ids
        self._stop_token_ids = list(stop_token_ids)
        self._generated: list[int] = []
        # Arrays [vocab_size] are made with the first logits: waiting requests need none.
        self._bias: Logits | None = None  # added before the repetition penalty
        self._penalty: Logits | None = None  # subtracted after it
        self._counted: set[int] = set()  # ids with a penalty
        self._seen: npt.NDArray[np.bool_] | None = None  # ids in the prompt or the output
        self._bans_after: defaultdict[int, list[tuple[tuple[int, ...], int]]] = defaultdict(list)
        for sequence in sampling.bad_words:
            if len(sequence) > 1:
                self._bans_after[sequence[-2]].append((sequence[:-1], sequence[-1]))

    def apply(self, logits: Logits) -> Logits:
        """Returns the processed logits of the next token, f32 [vocab_size], as a new array."""
        sampling = self._sampling
        bias = self._make_arrays(logits.size) if self._bias is None else self._bias
        processed: Logits = logits + bias
        if self._generated:
            for prefix, banned in self._bans_after.get(self._generated[-1], ()):
                if tuple(self._generated[-len(prefix) :]) == prefix:
                    processed[banned] = -np.inf
        if len(self._generated) < sampling.min_tokens:
            processed[self._stop_token_ids] = -np.inf
        if self._seen is not None:
            seen = processed[self._seen]
            factor = np.float32(sampling.repetition_penalty)
            processed[self._seen] = np.where(seen > 0, seen / factor, seen * factor)
        if self._penalty is not None:
            processed -= self._penalty
        return processed

    def accept_token(self, token_id: int) -> None:
        """Adds a sampled token to the output."""
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
