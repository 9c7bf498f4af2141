"""Compares the output of an engine with that of its source checkpoint: arithmetic and thresholds, no GPU needed.

Agreement: the share of the source's greedy tokens that the engine generates before it first differs. After the first
difference the two continue different texts, so later tokens are not compared.
Perplexity: of a text under the engine, as a multiple of its perplexity under the source.

THE THRESHOLDS ARE ASSUMPTIONS. They accept rounding and reject a broken engine (wrong scales, swapped ranks, another
tokenizer), whose agreement is near 0 and whose perplexity is many times the source's. No engine has been measured
against them; set --threshold once you have measurements of your own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from build_engine.artifact.checks import Check


class Gate(str, Enum):
    """The values of --gate."""

    AGREEMENT = "agreement"
    PERPLEXITY = "perplexity"


@dataclass(frozen=True)
class Threshold:
    min_agreement: float  # 0 to 1
    max_perplexity_ratio: float  # engine over source; 1: as good


THRESHOLDS = {
    "fp32": Threshold(0.95, 1.005),
    "fp16": Threshold(0.75, 1.01),
    "bf16": Threshold(0.75, 1.01),
    "int8-wo": Threshold(0.70, 1.02),
    "fp8": Threshold(0.60, 1.03),
    "int8-sq": Threshold(0.50, 1.05),
    "int4-awq": Threshold(0.45, 1.08),
    "w4a8-awq": Threshold(0.40, 1.10),
    "nvfp4": Threshold(0.40, 1.10),
    "int4-wo": Threshold(0.35, 1.25),
}
# Appended to the result of a check that used one of the thresholds above.
ASSUMED_NOTE = " (assumed, not measured; --threshold sets another)"
KV_THRESHOLDS = {"fp8": THRESHOLDS["fp8"], "int8": THRESHOLDS["int8-wo"]}


def threshold_for(gate: Gate, precision: str, kv_precision: str) -> float:
    """The more lenient of the thresholds of the weights and the KV cache."""
    weights = THRESHOLDS[precision]
    kv = KV_THRESHOLDS.get(kv_precision, weights)
    if gate is Gate.AGREEMENT:
        return min(weights.min_agreement, kv.min_agreement)
    return max(weights.max_perplexity_ratio, kv.max_perplexity_ratio)


def agreement(expected: Sequence[Sequence[int]], produced: Sequence[Sequence[int]]) -> float:
    """Mean share (0 to 1) of the expected tokens that come before the first difference; one sequence per prompt.

    Tokens missing from `produced` count as different. Raises ValueError if a sequence is missing or empty.
    """
    if len(expected) != len(produced) or not expected or not all(expected):
        raise ValueError(f"{len(expected)} expected and {len(produced)} produced sequences can't be compared")
    pairs = zip(expected, produced, strict=True)
    return sum(_common_prefix(one, other) / len(one) for one, other in pairs) / len(expected)


def _common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    differing = (index for index, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return next(differing, min(len(one), len(other)))


def perplexity(logprobs: Sequence[float]) -> float:
    """exp of the mean negative logprob (natural logarithm); infinite if a token has probability 0.

    Raises ValueError if `logprobs` is empty, or a value is above 0 or NaN.
    """
    if not logprobs or any(math.isnan(value) or value > 0 for value in logprobs):
        raise ValueError("perplexity requires logprobs: at least one, none above 0")
    try:
        return math.exp(-math.fsum(logprobs) / len(logprobs))
    except OverflowError:
        return math.inf


def check_agreement(
    expected: Sequence[Sequence[int]], produced: Sequence[Sequence[int]], minimum: float, note: str = ""
) -> Check:
    share = agreement(expected, produced)
    detail = f"{share:.0%} of the source's greedy tokens before the first difference, minimum {minimum:.0%}{note}"
    return Check.of("accuracy", share >= minimum, detail)


def check_perplexity(source: Sequence[float], engine: Sequence[float], max_ratio: float, note: str = "") -> Check:
    of_engine, of_source = perplexity(engine), perplexity(source)
    detail = (
        f"perplexity {of_engine:.3f}, the source's {of_source:.3f}: {of_engine / of_source:.3f} times, "
        f"maximum {max_ratio:g}{note}"
    )
    return Check.of("accuracy", of_engine <= max_ratio * of_source, detail)
