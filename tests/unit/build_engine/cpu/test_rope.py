"""Properties of the rope scalings; their values are compared with transformers in hugging_face/test_reference.py."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from build_engine.cpu.rope import (
    Frequencies,
    Rope,
    base_frequencies,
    scale_like_llama3,
    scale_like_yarn,
    yarn_attention_factor,
)

BASES = st.floats(100, 1e7)
FACTORS = st.floats(1, 64)
LENGTHS = st.integers(16, 1 << 20)
SIZES = st.sampled_from([8, 64, 128, 256])
Scale = Callable[[float, int, float, int], Frequencies]


def llama3(base: float, size: int, factor: float, length: int) -> Frequencies:
    return scale_like_llama3(base_frequencies(base, size), factor=factor, low=1.0, high=4.0, original_length=length)


def yarn(base: float, size: int, factor: float, length: int) -> Frequencies:
    return scale_like_yarn(base_frequencies(base, size), base=base, factor=factor, original_length=length)


@pytest.mark.parametrize("scale", [llama3, yarn])
@given(base=BASES, size=SIZES, factor=FACTORS, length=LENGTHS)
def test_each_frequency_is_divided_by_a_number_from_1_to_the_factor(
    scale: Scale, base: float, size: int, factor: float, length: int
) -> None:
    unscaled = base_frequencies(base, size)
    divisors = unscaled / scale(base, size, factor, length)
    assert divisors.shape == (size // 2,)
    assert (divisors >= 1 - 1e-9).all()
    assert (divisors <= factor * (1 + 1e-9)).all()
    assert (np.diff(divisors) >= -1e-9).all()  # slow dimensions more than fast ones


@pytest.mark.parametrize("scale", [llama3, yarn])
@given(base=BASES, size=SIZES, length=LENGTHS)
def test_a_factor_of_1_changes_nothing(scale: Scale, base: float, size: int, length: int) -> None:
    np.testing.assert_allclose(scale(base, size, 1.0, length), base_frequencies(base, size), rtol=1e-12)


def test_the_attention_factor_of_yarn_is_that_of_its_paper() -> None:
    """Equation 22 of arXiv 2309.00071: sqrt(1/t) = 0.1 ln(s) + 1."""
    assert yarn_attention_factor(4.0) == pytest.approx(1.138629, abs=1e-6)
    assert yarn_attention_factor(1.0) == yarn_attention_factor(0.5) == 1.0


def test_only_frequencies_that_differ_from_those_of_the_base_count_as_scaled() -> None:
    frequencies = base_frequencies(10000.0, 64)
    assert not Rope(10000.0, frequencies).is_scaled
    assert Rope(10000.0, frequencies / 2).is_scaled
