"""Growth is detected through noise, and noise is not reported as growth."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from benchmarks.soak.growth import Growth, Limit, find_growth

SECONDS = [float(second) for second in range(600)]
NOISE = random.Random(1)


def growth_of(value: Callable[[float], float], limit: Limit) -> Growth:
    return find_growth(SECONDS, [value(second) for second in SECONDS], limit)


@pytest.mark.parametrize(
    "value",
    [
        lambda second: 100.0,
        lambda second: 100 + NOISE.gauss(0, 5),
        lambda second: 100 + 30 * (second % 60 < 5),
        lambda second: min(100.0, second),
        lambda second: 100 + 500 * (second > 580),
        lambda second: 200 - second / 10,
    ],
    ids=["flat", "noise", "spikes", "a warm-up", "a spike at the end", "shrinking"],
)
def test_series_without_leak(value: Callable[[float], float]) -> None:
    assert not growth_of(value, Limit(absolute=8.0)).is_leak


@pytest.mark.parametrize(
    "value",
    [
        lambda second: 100 + second * 0.05,
        lambda second: 100 + second * 0.05 + NOISE.gauss(0, 5),
        lambda second: 100 + 10.0 * (second // 100),
    ],
    ids=["steady", "within noise", "in steps"],
)
def test_series_with_leak(value: Callable[[float], float]) -> None:
    growth = growth_of(value, Limit(absolute=8.0))
    assert growth.is_leak
    assert growth.slope_per_minute > 1


def test_share_raises_the_limit_of_a_large_series() -> None:
    assert not growth_of(lambda second: 1000 + second * 0.05, Limit(absolute=8.0, share=0.05)).is_leak


def test_too_few_samples_are_rejected() -> None:
    with pytest.raises(ValueError, match="Run for longer"):
        find_growth([0.0, 1.0, 2.0], [1.0, 1.0, 1.0], Limit(1.0))
