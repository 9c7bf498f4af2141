"""Logits to tokens, in numpy, with one random generator per request: a seed means the same alone and in a crowd.

Order, as in vLLM: the edits of logit_edits.py; the guide; temperature, min_p, top_k, top_p; then one draw. Each filter
works on the probabilities of the whole vocabulary, in float64, so that the sum does not depend on the order of its
parts by more than the draw can notice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from llm_pipeline.executors.cpu_engine.logit_edits import LogitEdits
from llm_pipeline.guides import GuideFollower
from llm_pipeline.messages import Sampling

Logits = npt.NDArray[np.float32]  # [vocab_size]
_Floats = npt.NDArray[np.float64]


class BadLogitsError(Exception):
    """The model gave NaN or infinite logits: no token can be picked."""


class Sampler:
    """Picks the tokens of one request, one after the other.

    `prompt_ids` count for the repetition penalty; `end_ids` are what min_tokens keeps away. Every token is one that
    `guide` allows.
    """

    def __init__(
        self,
        sampling: Sampling,
        prompt_ids: Sequence[int] = (),
        end_ids: Sequence[int] = (),
        guide: GuideFollower | None = None,
    ) -> None:
        self._sampling = sampling
        self._guide = guide
        self._edits = LogitEdits.of(sampling, prompt_ids, end_ids)
        self._random = None if sampling.is_greedy else np.random.Generator(np.random.PCG64(sampling.seed))

    def pick(self, logits: Logits) -> int:
        """The next token.

        BadLogitsError when the logits are not numbers, or every token is banned; GuideError when the guide can't be
        followed any further.
        """
        if self._edits is not None:
            logits = self._edits.apply(logits)
        if self._guide is not None:
            logits = np.where(self._guide.allowed(), logits, np.float32(-np.inf))
        token_id = self._pick(logits)
        if self._edits is not None:
            self._edits.note(token_id)
        if self._guide is not None:
            self._guide.advance((token_id,))
        return token_id

    def _pick(self, logits: Logits) -> int:
        best = int(logits.argmax())
        if not np.isfinite(logits[best]):
            raise BadLogitsError("The engine computed logits that are not finite.")
        if self._random is None:
            return best
        # One draw per token, whatever the filters keep, so that position n always uses the n-th draw.
        return _draw(_weights(logits, best, self._sampling), self._sampling, self._random.random())


def _weights(logits: Logits, best: int, sampling: Sampling) -> _Floats:
    """Probabilities relative to the most likely token's, which is 1; zero where min_p drops a token."""
    scaled = (logits.astype(np.float64) - float(logits[best])) / sampling.temperature
    weights: _Floats = np.exp(scaled)
    if sampling.min_p > 0:
        weights[weights < sampling.min_p] = 0.0
    return weights


def _draw(weights: _Floats, sampling: Sampling, position: float) -> int:
    """The token at `position` (0..1) of the cumulative weights that top_k and top_p leave."""
    ids: npt.NDArray[Any] | None = None
    if 0 < sampling.top_k < weights.size:
        ids = np.argpartition(weights, -sampling.top_k)[-sampling.top_k :]
        weights = weights[ids]
    if sampling.top_p < 1:
        kept = _nucleus(weights, sampling.top_p)
        ids = kept if ids is None else ids[kept]
        weights = weights[kept]
    total = np.cumsum(weights)
    index = min(int(np.searchsorted(total, position * total[-1], side="right")), weights.size - 1)
    return index if ids is None else int(ids[index])


def _nucleus(weights: _Floats, top_p: float) -> npt.NDArray[Any]:
    """Positions of the smallest set of largest weights that holds at least `top_p` of the total; at least one."""
    order = np.argsort(-weights, kind="stable")
    total = np.cumsum(weights[order])
    count = int(np.searchsorted(total, top_p * total[-1], side="left")) + 1
    kept: npt.NDArray[Any] = order[:count]
    return kept
