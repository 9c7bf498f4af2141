"""Whether an engine still says what its source checkpoint says: arithmetic and thresholds, nothing that needs a GPU.

Agreement: of the first tokens that the source generates greedily, how many the engine gives before it first differs.
After a first difference the two continue different texts, so later tokens are not compared.
Perplexity: of a text under the engine, as a multiple of the same under the source.

THE THRESHOLDS ARE ASSUMPTIONS. They are set to let rounding pass and to stop an engine that is broken (wrong scales,
swapped ranks, another tokenizer), whose agreement is near 0 and whose perplexity is many times the source's. No engine
has been measured against them; set your own with --threshold once you have.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from build_engine.artifact.checks import Check


class Gate(str, Enum):
    """What --gate takes."""

    AGREEMENT = "agreement"
    PERPLEXITY = "perplexity"


@dataclass(frozen=True)
class Threshold:
    least_agreement: float  # 0 to 1
    most_perplexity_ratio: float  # engine over source; 1: as good


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
# Said wherever one of them has judged an engine.
ASSUMED_NOTE = " (assumed, not measured; --threshold sets another)"
KV_THRESHOLDS = {"fp8": THRESHOLDS["fp8"], "int8": THRESHOLDS["int8-wo"]}


def threshold_for(gate: Gate, precision: str, kv_precision: str) -> float:
    """The laxer of what weights and KV cache ask for."""
    weights = THRESHOLDS[precision]
    kv = KV_THRESHOLDS.get(kv_precision, weights)
    if gate is Gate.AGREEMENT:
        return min(weights.least_agreement, kv.least_agreement)
    return max(weights.most_perplexity_ratio, kv.most_perplexity_ratio)


def agreement(expected: Sequence[Sequence[int]], produced: Sequence[Sequence[int]]) -> float:
    """The mean over prompts of equal tokens before the first difference, as a share of the expected ones: 0 to 1.

    ValueError when there is nothing to compare. Tokens missing from `produced` count as different.
    """
    if len(expected) != len(produced) or not expected or not all(expected):
        raise ValueError(f"{len(expected)} expected and {len(produced)} produced sequences can't be compared")
    pairs = zip(expected, produced, strict=True)
    return sum(_equal_at_start(one, other) / len(one) for one, other in pairs) / len(expected)


def _equal_at_start(one: Sequence[int], other: Sequence[int]) -> int:
    differing = (index for index, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return next(differing, min(len(one), len(other)))


def perplexity(log_probs: Sequence[float]) -> float:
    """exp of the mean negative log probability (natural logarithm); infinite when a token was held impossible.

    ValueError for no tokens, and for what is no log probability.
    """
    if not log_probs or any(math.isnan(value) or value > 0 for value in log_probs):
        raise ValueError("perplexity needs log probabilities: at least one, none above 0")
    try:
        return math.exp(-math.fsum(log_probs) / len(log_probs))
    except OverflowError:
        return math.inf


def agreement_check(
    expected: Sequence[Sequence[int]], produced: Sequence[Sequence[int]], least: float, note: str = ""
) -> Check:
    share = agreement(expected, produced)
    detail = f"{share:.0%} of the source's greedy tokens before the first difference, at least {least:.0%} wanted{note}"
    return Check.of("accuracy", share >= least, detail)


def perplexity_check(source: Sequence[float], engine: Sequence[float], most: float, note: str = "") -> Check:
    ours, theirs = perplexity(engine), perplexity(source)
    detail = (
        f"perplexity {ours:.3f}, the source's {theirs:.3f}: {ours / theirs:.3f} times, at most {most:g} wanted{note}"
    )
    return Check.of("accuracy", ours <= most * theirs, detail)
