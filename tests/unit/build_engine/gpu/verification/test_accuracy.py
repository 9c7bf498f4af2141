"""The gate's arithmetic: agreement and perplexity from given tokens and log probabilities, and every threshold."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from build_engine.artifact.checks import Outcome
from build_engine.gpu.verification.accuracy import (
    THRESHOLDS,
    Gate,
    agreement,
    check_agreement,
    check_perplexity,
    perplexity,
    threshold_for,
)
from build_engine.targets.precisions import KV_PRECISIONS, PRECISIONS

TOKENS = st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=6), min_size=1, max_size=5)


@pytest.mark.parametrize(
    ("expected", "produced", "share"),
    [
        ([[1, 2, 3, 4]], [[1, 2, 3, 4]], 1.0),
        ([[1, 2, 3, 4]], [[1, 2, 9, 4]], 0.5),
        ([[1, 2, 3, 4]], [[9, 2, 3, 4]], 0.0),
        ([[1, 2, 3, 4]], [[1]], 0.25),
        ([[1, 2, 3, 4]], [[1, 2, 3, 4, 5]], 1.0),
        ([[1, 2], [3, 4]], [[1, 2], [9, 4]], 0.5),
    ],
    ids=["equal", "differs", "differs-at-once", "too-short", "longer", "mean-over-prompts"],
)
def test_agreement_counts_up_to_the_first_difference(
    expected: list[list[int]], produced: list[list[int]], share: float
) -> None:
    assert agreement(expected, produced) == share


@given(TOKENS)
def test_a_sequence_agrees_with_itself(tokens: list[list[int]]) -> None:
    assert agreement(tokens, tokens) == 1.0


@pytest.mark.parametrize(
    ("expected", "produced"), [([], []), ([[1]], []), ([[]], [[1]])], ids=["none", "number", "empty"]
)
def test_nothing_to_compare_is_no_agreement(expected: list[list[int]], produced: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="can't be compared"):
        agreement(expected, produced)


def test_perplexity_of_a_uniform_choice_is_the_number_of_choices() -> None:
    assert perplexity([math.log(1 / 50)] * 7) == pytest.approx(50)


def test_perplexity_by_hand() -> None:
    """Probabilities 1/2 and 1/8: the geometric mean is 1/4."""
    assert perplexity([math.log(0.5), math.log(0.125)]) == pytest.approx(4)


def test_a_token_held_impossible_makes_perplexity_infinite() -> None:
    assert perplexity([-0.5, -math.inf]) == math.inf
    assert perplexity([-1e6]) == math.inf


@given(st.lists(st.floats(-50, 0), min_size=1))
def test_perplexity_is_at_least_one(logprobs: list[float]) -> None:
    assert perplexity(logprobs) >= 1


@pytest.mark.parametrize("logprobs", [[], [0.1], [math.nan]], ids=["none", "above-0", "nan"])
def test_what_is_no_log_probability_is_refused(logprobs: list[float]) -> None:
    with pytest.raises(ValueError, match="logprobs"):
        perplexity(logprobs)


def test_the_gates_pass_at_their_threshold_and_fail_beyond() -> None:
    assert check_agreement([[1, 2, 3, 4]], [[1, 2, 0, 0]], 0.5).outcome is Outcome.PASSED
    assert check_agreement([[1, 2, 3, 4]], [[1, 2, 0, 0]], 0.51).outcome is Outcome.FAILED
    half, quarter = [math.log(0.5)], [math.log(0.25)]
    assert check_perplexity(half, quarter, 2.001).outcome is Outcome.PASSED
    assert check_perplexity(half, quarter, 1.999).outcome is Outcome.FAILED
    assert check_perplexity(half, [-math.inf], 2).outcome is Outcome.FAILED


def test_every_precision_has_thresholds() -> None:
    assert THRESHOLDS.keys() == PRECISIONS.keys()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kv", KV_PRECISIONS)
def test_a_quantized_cache_never_makes_a_threshold_stricter(precision: str, kv: str) -> None:
    assert threshold_for(Gate.AGREEMENT, precision, kv) <= THRESHOLDS[precision].min_agreement
    assert threshold_for(Gate.PERPLEXITY, precision, kv) >= THRESHOLDS[precision].max_perplexity_ratio


def test_a_16_bit_engine_with_an_fp8_cache_is_judged_by_its_cache() -> None:
    assert threshold_for(Gate.AGREEMENT, "bf16", "fp8") == THRESHOLDS["fp8"].min_agreement
    assert threshold_for(Gate.PERPLEXITY, "bf16", "fp16") == THRESHOLDS["bf16"].max_perplexity_ratio
