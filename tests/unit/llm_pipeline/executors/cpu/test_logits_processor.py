"""Bias, bans and penalties compared with their definitions, token by token."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_pipeline.executors.cpu.engine.logits_processor import LogitsProcessor
from llm_pipeline.executors.cpu.engine.sampler import BadLogitsError, Sampler
from llm_pipeline.protocol.messages import SamplingParams

VOCABULARY = 12
ids = st.integers(0, VOCABULARY - 1)
some_ids = st.lists(ids, max_size=12)
words = st.lists(st.lists(ids, min_size=1, max_size=3).map(tuple), max_size=3).map(tuple)
samplings = st.builds(
    SamplingParams,
    repetition_penalty=st.sampled_from([1.0, 1.3, 0.7]),
    presence_penalty=st.sampled_from([0.0, 0.5, -2.0]),
    frequency_penalty=st.sampled_from([0.0, 0.25, -1.5]),
    min_tokens=st.integers(0, 4),
    logit_bias=st.dictionaries(ids, st.floats(-100, 100, width=32), max_size=3).map(lambda found: tuple(found.items())),
    bad_words=words,
)


def expected_logit(
    logit: float,
    token_id: int,
    sampling: SamplingParams,
    prompt: Sequence[int],
    output: Sequence[int],
    stop_token_ids: Sequence[int],
) -> float:
    """Returns the processed logit of one token, by the definitions in vLLM's and OpenAI's documentation."""
    logit += dict(sampling.logit_bias).get(token_id, 0.0)
    for word in sampling.bad_words:
        start = list(word[:-1])
        if token_id == word[-1] and list(output[len(output) - len(start) :]) == start:
            return -math.inf
    if token_id in stop_token_ids and len(output) < sampling.min_tokens:
        return -math.inf
    if token_id in prompt or token_id in output:
        logit = logit / sampling.repetition_penalty if logit > 0 else logit * sampling.repetition_penalty
    count = Counter(output)[token_id]
    return logit - sampling.frequency_penalty * count - sampling.presence_penalty * (count > 0)


@given(samplings, some_ids, some_ids, st.lists(ids, max_size=2), st.integers(0, 2**32 - 1))
def test_processed_logits_equal_their_definition(
    sampling: SamplingParams, prompt: list[int], output: list[int], stop_token_ids: list[int], seed: int
) -> None:
    logits = np.random.default_rng(seed).normal(0, 5, VOCABULARY).astype(np.float32)
    processor = LogitsProcessor.for_request(sampling, prompt, stop_token_ids)
    if processor is None:
        assert sampling == SamplingParams()
        return
    processor.apply(logits)
    for token_id in output:
        processor.accept_token(token_id)
    expected = [
        expected_logit(float(logit), token_id, sampling, prompt, output, stop_token_ids)
        for token_id, logit in enumerate(logits)
    ]
    untouched = logits.copy()
    np.testing.assert_allclose(processor.apply(logits), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(logits, untouched)  # they belong to the engine, which computes logprobs from them


def test_request_without_these_parameters_has_no_processor() -> None:
    assert LogitsProcessor.for_request(SamplingParams(is_greedy=False, temperature=0.5, top_k=3), (1, 2), (0,)) is None


def test_greedy_sampling_uses_the_processed_logits() -> None:
    logits = np.array([0, 5, 4, 3], dtype=np.float32)
    sampler = Sampler(SamplingParams(frequency_penalty=1.5))
    assert [sampler.sample(logits) for _ in range(5)] == [1, 2, 1, 3, 2]  # 5, 4, 3.5, 3, 2.5


def test_banned_token_is_never_sampled() -> None:
    logits = np.array([10, 1, 0, 0], dtype=np.float32)
    sampler = Sampler(SamplingParams(is_greedy=False, seed=7, bad_words=((0,), (1, 2))))
    output = [sampler.sample(logits) for _ in range(300)]
    assert 0 not in output
    assert (1, 2) not in set(itertools.pairwise(output))
    assert {1, 3} <= set(output)


def test_ban_of_every_token_is_an_error() -> None:
    sampler = Sampler(SamplingParams(bad_words=((0,), (1,))))
    with pytest.raises(BadLogitsError):
        sampler.sample(np.zeros(2, dtype=np.float32))
