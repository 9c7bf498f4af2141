"""The CPU engine's sampler: exact filters, correct probabilities, reproducible seeds."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_pipeline.executors.cpu.engine.sampler import BadLogitsError, Sampler, nucleus
from llm_pipeline.protocol.messages import SamplingParams

# Token ids are not in order of their probability, to expose filters that confuse ranks with ids.
PROBABILITIES: npt.NDArray[np.float64] = np.array([0.05, 0.4, 0.1, 0.25, 0.15, 0.05])
LOGITS = np.log(PROBABILITIES).astype(np.float32) + 3
DRAWS = 5_000
# Chi-square that a correct sampler exceeds once in 10,000 runs, by degrees of freedom. Seeds are fixed: no flakes.
CHI_SQUARE_LIMIT = {1: 15.14, 2: 18.42, 3: 21.11, 4: 23.51, 5: 25.74}


def draw(
    sampling: SamplingParams, logits: npt.NDArray[np.float32] = LOGITS, count: int = DRAWS
) -> npt.NDArray[np.intp]:
    """Returns how often each token was sampled."""
    sampler = Sampler(sampling)
    return np.bincount([sampler.sample(logits) for _ in range(count)], minlength=logits.size)


def sampled(**values: float) -> SamplingParams:
    return SamplingParams(is_greedy=False, **{"seed": 11, **values})  # type: ignore[arg-type]


def only(*ids: int, weights: npt.NDArray[np.float64] = PROBABILITIES) -> npt.NDArray[np.float64]:
    """Returns the probabilities after all other tokens are dropped."""
    kept = np.zeros_like(weights)
    kept[list(ids)] = weights[list(ids)]
    probabilities: npt.NDArray[np.float64] = kept / kept.sum()
    return probabilities


def assert_distributed(counts: npt.NDArray[np.intp], expected: npt.NDArray[np.float64]) -> None:
    kept = expected > 0
    assert counts[~kept].sum() == 0, "a dropped token was sampled"
    if kept.sum() > 1:
        wanted = expected[kept] * counts.sum()
        assert ((counts[kept] - wanted) ** 2 / wanted).sum() < CHI_SQUARE_LIMIT[int(kept.sum()) - 1]


def test_greedy_sampling_returns_the_most_likely_token() -> None:
    assert draw(SamplingParams(is_greedy=True), count=10)[1] == 10


def test_greedy_sampling_ignores_the_other_parameters() -> None:
    sampling = SamplingParams(is_greedy=True, temperature=2.0, top_k=3, top_p=0.1, min_p=1.0, seed=5)
    assert draw(sampling, count=10)[1] == 10


DISTRIBUTIONS = {
    "plain": (sampled(), PROBABILITIES),
    "temperature 0.5": (sampled(temperature=0.5), PROBABILITIES**2 / (PROBABILITIES**2).sum()),
    "temperature 2": (sampled(temperature=2.0), PROBABILITIES**0.5 / (PROBABILITIES**0.5).sum()),
    "temperature near 0": (sampled(temperature=1e-6), only(1)),
    "top_k 1": (sampled(top_k=1), only(1)),
    "top_k 2": (sampled(top_k=2), only(1, 3)),
    "top_k 4": (sampled(top_k=4), only(1, 3, 4, 2)),
    "top_k of the vocabulary": (sampled(top_k=6), PROBABILITIES),
    "top_k above the vocabulary": (sampled(top_k=10_000), PROBABILITIES),
    "top_p 0.3": (sampled(top_p=0.3), only(1)),
    "top_p 0.6": (sampled(top_p=0.6), only(1, 3)),
    "top_p 0.7": (sampled(top_p=0.7), only(1, 3, 4)),
    "top_p near 0": (sampled(top_p=1e-30), only(1)),
    "min_p 0.2": (sampled(min_p=0.2), only(1, 2, 3, 4)),
    "min_p 0.5": (sampled(min_p=0.5), only(1, 3)),
    "min_p 1": (sampled(min_p=1.0), only(1)),
    "top_p counts within top_k": (sampled(top_k=2, top_p=0.6), only(1)),
    "min_p comes after temperature": (
        sampled(temperature=0.5, min_p=0.3),
        only(1, 3, weights=np.square(PROBABILITIES)),
    ),
}


@pytest.mark.parametrize(("sampling", "expected"), DISTRIBUTIONS.values(), ids=DISTRIBUTIONS)
def test_tokens_are_sampled_with_their_probabilities(
    sampling: SamplingParams, expected: npt.NDArray[np.float64]
) -> None:
    assert_distributed(draw(sampling), expected)


def test_equally_likely_tokens_all_pass_min_p_of_one() -> None:
    logits = np.array([1.0, 3.0, 3.0, 2.0], dtype=np.float32)
    assert_distributed(draw(sampled(min_p=1.0), logits), np.array([0, 0.5, 0.5, 0]))


def test_top_k_keeps_exactly_k_of_equally_likely_tokens() -> None:
    assert np.count_nonzero(draw(sampled(top_k=3), np.zeros(50, dtype=np.float32), 2000)) == 3


def test_token_with_probability_zero_is_never_sampled() -> None:
    logits = np.array([-np.inf, 0.0, -np.inf, 0.0, -np.inf], dtype=np.float32)
    assert_distributed(draw(sampled(), logits), np.array([0, 0.5, 0, 0.5, 0]))


def test_huge_logits_do_not_overflow() -> None:
    logits = np.array([3e38, 0.0, -3e38], dtype=np.float32)
    assert draw(sampled(temperature=0.01), logits, 100)[0] == 100


# --- Seeds -----------------------------------------------------------------------------------------------------------

FLAT = np.zeros(50_000, dtype=np.float32)


def stream(seed: int, count: int = 4) -> list[int]:
    sampler = Sampler(sampled(seed=seed))
    return [sampler.sample(FLAT) for _ in range(count)]


def test_the_same_seed_gives_the_same_tokens() -> None:
    assert stream(7) == stream(7)


def test_every_bit_of_the_seed_matters() -> None:
    assert len({tuple(stream(1 << bit)) for bit in range(64)} | {tuple(stream(0))}) == 65


def test_the_largest_seed_works() -> None:
    assert stream(2**64 - 1) != stream(2**63 - 1)


def test_filters_do_not_change_the_noise_of_later_tokens() -> None:
    """Position n always uses the n-th noise: both samplers draw among the same three tokens, with the same result."""
    plain, filtered = Sampler(sampled()), Sampler(sampled(top_k=3))
    three, three_of_all = np.full_like(FLAT, -np.inf), np.full_like(FLAT, -50)
    three[100:103] = three_of_all[100:103] = 0
    plain.sample(FLAT), filtered.sample(FLAT)
    assert [plain.sample(three) for _ in range(20)] == [filtered.sample(three_of_all) for _ in range(20)]


def test_seed_gives_the_same_tokens_if_logits_differ_in_their_last_digits() -> None:
    """They do with the batch that a request is in. The inverse of a cumulative sum fails this test."""
    random = np.random.default_rng(1)
    flips = 0
    for seed in range(200):
        logits = (random.standard_normal(50_000) * 3).astype(np.float32)
        shaken = logits + random.uniform(-5e-5, 5e-5, logits.size).astype(np.float32)
        flips += Sampler(sampled(seed=seed)).sample(logits) != Sampler(sampled(seed=seed)).sample(shaken)
    assert flips == 0


@given(st.integers(1, 2000), st.floats(1e-6, 0.999999), st.integers(0, 2**32 - 1), st.sampled_from([0.0, 1.0, 5.0]))
def test_nucleus_equals_that_of_a_full_sort(size: int, top_p: float, seed: int, spread: float) -> None:
    weights = np.exp(np.random.default_rng(seed).standard_normal(size) * spread).astype(np.float32)
    positions = nucleus(weights, top_p)
    largest = np.sort(weights)[::-1]
    total = np.cumsum(largest, dtype=np.float64)
    count = int(np.searchsorted(total, top_p * weights.sum(dtype=np.float64), side="left")) + 1
    assert len(set(positions.tolist())) == len(positions) == min(count, size)
    assert np.array_equal(weights[positions], largest[:count])


# --- Logits that are not finite --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sampling", [SamplingParams(), sampled(), sampled(top_k=2)], ids=["greedy", "sampled", "top_k"]
)
@pytest.mark.parametrize(
    "bad",
    [[1.0, np.nan, 2.0], [np.nan] * 3, [1.0, np.inf, 2.0], [-np.inf] * 3, [np.inf, np.nan, 1.0]],
    ids=["a NaN", "all NaN", "infinity", "all minus infinity", "infinity and NaN"],
)
def test_logits_that_are_not_finite_are_an_error(sampling: SamplingParams, bad: list[float]) -> None:
    with pytest.raises(BadLogitsError):
        Sampler(sampling).sample(np.array(bad, dtype=np.float32))
