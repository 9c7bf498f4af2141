"""Logits to tokens, in numpy, with one random generator per request: a seed means the same alone and in a crowd.

Order, as in vLLM: the edits of logit_edits.py; the guide; temperature, min_p, top_k, top_p; then the pick.

The pick is a race of exponential clocks, as in vLLM: each token's noise is drawn from Exp(1), and the largest of
probability / noise wins, which is a draw from the probabilities. Logits differ in their last digits with the company
that a request has (other kernels for other batch sizes). A race notices that only where two tokens are that close; the
inverse of a cumulative sum did wherever tokens have less probability than the sum's error, which is a whole tail.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from llm_pipeline.executors.cpu.engine.logits_processor import LogitsProcessor
from llm_pipeline.protocol.messages import SamplingParams
from llm_pipeline.runtime.guided_decoding import ConstraintMatcher

Logits = npt.NDArray[np.float32]  # [vocab_size]
_Weights = npt.NDArray[np.float32]
_Ids = npt.NDArray[np.int64]

_LEAST_NOISE = np.float32(1e-30)  # Exp(1) in float32 may be 0, which nothing can be divided by
_FIRST_NUCLEUS, _NUCLEUS_GROWTH = 256, 16


class BadLogitsError(Exception):
    """The model gave NaN or infinite logits: no token can be picked."""


class Sampler:
    """Picks the tokens of one request, one after the other.

    `prompt_ids` count for the repetition penalty; `end_ids` are what min_tokens keeps away. Every token is one that
    `guide` allows.
    """

    def __init__(
        self,
        sampling: SamplingParams,
        prompt_ids: Sequence[int] = (),
        end_ids: Sequence[int] = (),
        guide: ConstraintMatcher | None = None,
    ) -> None:
        self._sampling = sampling
        self._guide = guide
        self._edits = LogitsProcessor.of(sampling, prompt_ids, end_ids)
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
        weights = _weights(logits, best, self._sampling)
        # For the whole vocabulary, whatever the filters keep, so that position n always has the n-th noise.
        noise = self._random.standard_exponential(weights.size, dtype=np.float32)
        noise += _LEAST_NOISE
        kept = _kept(weights, self._sampling)
        if kept is None:
            return int(np.argmax(weights / noise))
        return int(kept[np.argmax(weights[kept] / noise[kept])])


def _weights(logits: Logits, best: int, sampling: SamplingParams) -> _Weights:
    """Probabilities relative to the most likely token's, which is 1; zero where min_p drops a token."""
    with np.errstate(over="ignore"):  # -inf, whose weight is 0
        scaled = (logits - logits[best]) / np.float32(sampling.temperature)
    weights: _Weights = np.exp(scaled)
    if sampling.min_p > 0:
        weights[weights < np.float32(sampling.min_p)] = 0.0
    return weights


def _kept(weights: _Weights, sampling: SamplingParams) -> _Ids | None:
    """The token ids that top_k and then top_p leave; None for all."""
    ids: _Ids | None = None
    if 0 < sampling.top_k < weights.size:
        ids = np.argpartition(weights, -sampling.top_k)[-sampling.top_k :]
        weights = weights[ids]
    if sampling.top_p < 1:
        nucleus = _nucleus(weights, sampling.top_p)
        ids = nucleus if ids is None else ids[nucleus]
    return ids


def _nucleus(weights: _Weights, top_p: float) -> _Ids:
    """Positions of the smallest set of largest weights that holds at least `top_p` of the total; at least one.

    Sorts the largest few, more of them only while they do not hold enough: a whole vocabulary takes ms to sort.
    """
    wanted = top_p * float(weights.sum(dtype=np.float64))
    size = _FIRST_NUCLEUS
    while True:
        some = np.arange(weights.size) if size >= weights.size else np.argpartition(weights, -size)[-size:]
        order = some[np.argsort(-weights[some], kind="stable")]
        total = np.cumsum(weights[order], dtype=np.float64)
        if total[-1] >= wanted or size >= weights.size:
            return order[: int(np.searchsorted(total, wanted, side="left")) + 1]
        size *= _NUCLEUS_GROWTH
