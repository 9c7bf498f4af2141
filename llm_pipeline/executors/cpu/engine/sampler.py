"""Logits to tokens, in numpy, with one random generator per request: a seed gives the same tokens alone and in a batch.

Order, as in vLLM: the logits processor (logits_processor.py); the guide; temperature, min_p, top_k, top_p; the draw.

The draw is a race of exponential clocks (the exponential or Gumbel-max trick), as in vLLM: each token's noise is drawn
from Exp(1), and the largest of probability / noise wins, which is a draw from the probabilities. Logits differ in their
last digits with the batch that a request is in (other kernels for other batch sizes). A race notices that only where
two tokens are that close; the inverse of a cumulative sum did wherever tokens have less probability than the sum's
error, which is a whole tail.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from llm_pipeline.executors.cpu.engine.logits_processor import Logits, LogitsProcessor
from llm_pipeline.protocol.messages import SamplingParams

Probabilities = npt.NDArray[np.float32]  # [vocab_size] or a selection of it
TokenIdArray = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]  # [vocab_size]

_MIN_NOISE = np.float32(1e-30)  # Exp(1) in float32 may be 0, which must not be a divisor
_FIRST_NUCLEUS, _NUCLEUS_GROWTH = 256, 16


class BadLogitsError(Exception):
    """The model computed NaN or infinite logits: no token can be sampled."""


class Sampler:
    """Samples the tokens of one request, one after the other.

    `prompt_ids` count for the repetition penalty; `stop_token_ids` are banned until min_tokens is reached.
    """

    def __init__(
        self,
        sampling: SamplingParams,
        prompt_ids: Sequence[int] = (),
        stop_token_ids: Sequence[int] = (),
    ) -> None:
        self._sampling = sampling
        self._processor = LogitsProcessor.for_request(sampling, prompt_ids, stop_token_ids)
        self._random = None if sampling.is_greedy else np.random.Generator(np.random.PCG64(sampling.seed))

    def sample(self, logits: Logits, mask: Mask | None = None) -> int:
        """Returns the next token; `logits`, f32 [vocab_size], are not modified.

        `mask` are the tokens that the request's guide allows. Raises BadLogitsError if the largest logit is not finite,
        also because every token is banned.
        """
        if self._processor is not None:
            logits = self._processor.apply(logits)
        if mask is not None:
            logits = np.where(mask, logits, np.float32(-np.inf))
        token_id = self._draw(logits)
        if self._processor is not None:
            self._processor.accept_token(token_id)
        return token_id

    def _draw(self, logits: Logits) -> int:
        best = int(logits.argmax())
        if not np.isfinite(logits[best]):
            raise BadLogitsError("The engine computed logits that are not finite.")
        if self._random is None:
            return best
        weights = _weights(logits, best, self._sampling)
        # For the whole vocabulary, whatever the filters keep, so that position n always has the n-th noise.
        noise = self._random.standard_exponential(weights.size, dtype=np.float32)
        noise += _MIN_NOISE
        kept = _kept(weights, self._sampling)
        if kept is None:
            return int(np.argmax(weights / noise))
        return int(kept[np.argmax(weights[kept] / noise[kept])])


def _weights(logits: Logits, best: int, sampling: SamplingParams) -> Probabilities:
    """Returns probabilities relative to the most likely token's, which is 1; zero where min_p drops a token."""
    with np.errstate(over="ignore"):  # -inf, whose weight is 0
        scaled = (logits - logits[best]) / np.float32(sampling.temperature)
    weights: Probabilities = np.exp(scaled)
    if sampling.min_p > 0:
        weights[weights < np.float32(sampling.min_p)] = 0.0
    return weights


def _kept(weights: Probabilities, sampling: SamplingParams) -> TokenIdArray | None:
    """Returns the token ids that pass top_k and then top_p; None for all."""
    ids: TokenIdArray | None = None
    if 0 < sampling.top_k < weights.size:
        ids = np.argpartition(weights, -sampling.top_k)[-sampling.top_k :]
        weights = weights[ids]
    if sampling.top_p < 1:
        positions = nucleus(weights, sampling.top_p)
        ids = positions if ids is None else ids[positions]
    return ids


def nucleus(weights: Probabilities, top_p: float) -> TokenIdArray:
    """Returns the positions of the smallest set of largest weights whose sum is at least `top_p` of the total.

    At least one position. Sorts the largest few weights, and more only while their sum is too small: sorting a whole
    vocabulary takes milliseconds.
    """
    needed = top_p * float(weights.sum(dtype=np.float64))
    size = _FIRST_NUCLEUS
    while True:
        largest = np.arange(weights.size) if size >= weights.size else np.argpartition(weights, -size)[-size:]
        order = largest[np.argsort(-weights[largest], kind="stable")]
        total = np.cumsum(weights[order], dtype=np.float64)
        if total[-1] >= needed or size >= weights.size:
            return order[: int(np.searchsorted(total, needed, side="left")) + 1]
        size *= _NUCLEUS_GROWTH
