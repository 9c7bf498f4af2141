"""Detects growth in a series of samples by a robust slope after a warm-up."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

WARM_UP_SHARE = 0.3  # caches, pools and allocators reach their final size
_MAX_POINTS = 240  # every pair of them has a slope


@dataclass(frozen=True)
class Limit:
    """Growth that a series may have after the warm-up: the larger of the two."""

    absolute: float
    share: float = 0.0  # of the series' median


@dataclass(frozen=True)
class Growth:
    """Growth of one series after the warm-up."""

    median: float
    slope_per_minute: float
    grown: float  # over the whole time after the warm-up
    allowed: float

    @property
    def is_leak(self) -> bool:
        """Whether the series has grown by more than its limit."""
        return self.grown > self.allowed


def find_growth(seconds: Sequence[float], values: Sequence[float], limit: Limit) -> Growth:
    """Returns the smaller of two robust estimates, so that neither a spike nor one late step counts as a leak.

    The Theil-Sen slope is the median of the slopes between all pairs of points, of which up to 29 % may be outliers.
    The other estimate is the difference between the medians of the last and the first third, scaled to the whole time.
    Raises ValueError for fewer than six samples after the warm-up.
    """
    start = seconds[0] + WARM_UP_SHARE * (seconds[-1] - seconds[0])
    points = [point for point in zip(seconds, values, strict=True) if point[0] >= start]
    points = points[:: max(1, len(points) // _MAX_POINTS)]
    if len(points) < 6:
        raise ValueError(f"{len(points)} samples after the warm-up are too few to detect growth. Run for longer.")
    slope = _theil_sen(points)
    span = points[-1][0] - points[0][0]
    third = len(points) // 3
    first, last = (statistics.median(value for _, value in part) for part in (points[:third], points[-third:]))
    by_thirds = (last - first) * 1.5
    median = statistics.median(value for _, value in points)
    return Growth(
        median=median,
        slope_per_minute=slope * 60,
        grown=min(slope * span, by_thirds),
        allowed=max(limit.absolute, limit.share * median),
    )


def _theil_sen(points: Sequence[tuple[float, float]]) -> float:
    return statistics.median(
        (value - earlier_value) / (second - earlier_second)
        for number, (second, value) in enumerate(points)
        for earlier_second, earlier_value in points[:number]
        if second > earlier_second
    )
