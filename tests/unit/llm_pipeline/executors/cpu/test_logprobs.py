"""Logprobs compared with the definition of the log-softmax, in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_pipeline.executors.cpu.engine.logprobs import compute_logprobs

VOCABULARY = 50


@given(st.integers(0, 40), st.integers(0, 20), st.integers(0, 2**32 - 1))
def test_logprobs_are_the_log_softmax(count: int, top_count: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    rows = random.normal(0, 10, (count, VOCABULARY)).astype(np.float32)
    ids = random.integers(0, VOCABULARY, count).tolist()
    values, tops = compute_logprobs(rows, ids, top_count)
    assert len(values) == count
    assert len(tops) == (count if top_count else 0)
    for number, row in enumerate(rows.tolist()):
        total = math.log(math.fsum(math.exp(logit) for logit in row))
        assert values[number] == pytest.approx(row[ids[number]] - total, abs=1e-4)
        if top_count:
            top_ids, top_values = tops[number]
            assert list(top_ids) == sorted(range(VOCABULARY), key=row.__getitem__, reverse=True)[:top_count]
            assert list(top_values) == sorted(top_values, reverse=True)
            # Evaluation harnesses compare both numbers to find out whether a token is the most likely one.
            assert dict(zip(top_ids, top_values, strict=True)).get(ids[number], values[number]) == values[number]


def test_top_count_above_the_vocabulary_returns_all_tokens() -> None:
    _, tops = compute_logprobs(np.zeros((1, 3), dtype=np.float32), [1], 20)
    assert len(tops[0][0]) == 3


def test_large_logits_do_not_overflow() -> None:
    values, _ = compute_logprobs(np.array([[3e4, 0, -3e4]], dtype=np.float32), [0], 0)
    assert values == [0.0]
