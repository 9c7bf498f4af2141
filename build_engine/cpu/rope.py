"""Frequencies of rotary position embedding (RoPE), scaled for contexts longer than those of the first training.

The formulas are those of transformers (src/transformers/modeling_rope_utils.py, version 5.24) and, for the same
kinds, of llama.cpp (ggml_rope_yarn_corr_dims and rope_yarn in ggml.c). Frequencies are float64 [head_size / 2], in
radians for each token, fastest first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Frequencies: TypeAlias = "npt.NDArray[np.float64]"


@dataclass(frozen=True, eq=False)
class Rope:
    """The rotary embedding of one kind of layer."""

    base: float
    frequencies: Frequencies
    scale: float = 1.0  # of cosines and sines; transformers' attention factor

    @property
    def is_scaled(self) -> bool:
        """Whether the frequencies differ from those that the base gives."""
        return not np.array_equal(self.frequencies, base_frequencies(self.base, 2 * len(self.frequencies)))


def base_frequencies(base: float, head_size: int) -> Frequencies:
    """The unscaled frequencies."""
    frequencies: Frequencies = 1.0 / base ** (np.arange(0, head_size, 2) / head_size)
    return frequencies


def scale_like_llama3(
    frequencies: Frequencies, *, factor: float, low: float, high: float, original_length: float
) -> Frequencies:
    """Llama 3.1's scaling: `_compute_llama3_parameters`.

    Divides by `factor` the frequencies of less than `low` turns in `original_length` tokens, keeps those of more than
    `high` turns, and interpolates between.
    """
    turns = original_length * frequencies / (2 * math.pi)
    kept = np.clip((turns - low) / (high - low), 0, 1)  # share of the unscaled frequency
    scaled: Frequencies = (1 - kept) * frequencies / factor + kept * frequencies
    return scaled


def scale_like_yarn(
    frequencies: Frequencies,
    *,
    base: float,
    factor: float,
    original_length: float,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    truncate: bool = True,
) -> Frequencies:
    """YaRN's scaling: `_compute_yarn_parameters`.

    Keeps the frequencies of more than `beta_fast` turns in `original_length` tokens, divides by `factor` those of less
    than `beta_slow`, and interpolates linearly over the dimensions between.
    """
    size = 2 * len(frequencies)

    def dimension(turns: float) -> float:
        return size * math.log(original_length / (turns * 2 * math.pi)) / (2 * math.log(base))

    first, last = dimension(beta_fast), dimension(beta_slow)
    if truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, size - 1)
    if first == last:
        last += 0.001
    divided = np.clip((np.arange(len(frequencies)) - first) / (last - first), 0, 1)  # share of the scaled frequency
    scaled: Frequencies = frequencies / factor * divided + frequencies * (1 - divided)
    return scaled


def yarn_attention_factor(factor: float, weight: float = 1.0) -> float:
    """YaRN's factor of cosines and sines: `get_mscale`, of which `weight` is mscale."""
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0
