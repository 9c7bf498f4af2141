"""The rules of a HorizontalPodAutoscaler, by the examples of Kubernetes' documentation and by their bounds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.fleet.autoscaler import Autoscaler, replicas_for
from benchmarks.fleet.chart import Direction, Policy, ScalerSpec, Trigger

DEMAND = Trigger("demand", "demand", threshold=10, is_average=True)
SHARE = Trigger("share", "share", threshold=80, is_average=False)
UP = Direction(0, (Policy(is_percent=True, value=100, period_s=60),))
DOWN = Direction(600, (Policy(is_percent=False, value=1, period_s=300),))


def scaler(*triggers: Trigger, up: Direction = UP, down: Direction = DOWN, most: int = 8) -> Autoscaler:
    return Autoscaler(ScalerSpec(2, most, triggers or (DEMAND,), up, down))


@pytest.mark.parametrize(
    ("trigger", "value", "current", "wished"),
    [
        (DEMAND, 45, 2, 5),
        (DEMAND, 21, 2, 2),  # 5 % above, within the tolerance
        (DEMAND, 23, 2, 3),
        (DEMAND, 28, 3, 3),
        (DEMAND, 20, 3, 2),
        (DEMAND, 0, 3, 0),
        (SHARE, 84, 4, 4),
        (SHARE, 100, 4, 5),
        (SHARE, 40, 4, 2),
    ],
)
def test_replicas_that_one_query_asks_for(trigger: Trigger, value: float, current: int, wished: int) -> None:
    assert replicas_for(trigger, value, current) == wished


def test_replicas_double_at_most_in_each_period() -> None:
    autoscaler = scaler()
    assert autoscaler.decide([1000], 2, now_s=0) == 4
    assert autoscaler.decide([1000], 4, now_s=30) == 4
    assert autoscaler.decide([1000], 4, now_s=61) == 8
    assert autoscaler.decide([1000], 8, now_s=122) == 8  # the maximum


def test_replicas_are_removed_one_by_one_after_the_window() -> None:
    autoscaler = scaler()
    assert autoscaler.decide([60], 6, now_s=0) == 6
    assert autoscaler.decide([0], 6, now_s=500) == 6
    assert autoscaler.decide([0], 6, now_s=601) == 5
    assert autoscaler.decide([0], 5, now_s=700) == 5
    assert autoscaler.decide([0], 5, now_s=902) == 4


def test_a_short_burst_keeps_its_replicas_for_the_window() -> None:
    autoscaler = scaler()
    assert autoscaler.decide([40], 2, now_s=0) == 4
    assert autoscaler.decide([10], 4, now_s=15) == 4
    assert autoscaler.decide([10], 4, now_s=599) == 4
    assert autoscaler.decide([10], 4, now_s=601) == 3


def test_the_query_that_asks_for_most_counts() -> None:
    assert scaler(DEMAND, SHARE).decide([20, 120], 2, now_s=0) == 3


def test_without_an_answer_no_replica_is_removed() -> None:
    no_window = Direction(0, DOWN.policies)
    assert scaler().decide([None], 5, now_s=0) == 5
    assert scaler(DEMAND, SHARE, down=no_window).decide([None, 1], 5, now_s=0) == 5
    assert scaler(DEMAND, SHARE).decide([90, None], 5, now_s=0) == 8


@given(
    values=st.lists(st.one_of(st.none(), st.floats(0, 1e6)), min_size=1, max_size=40),
    step_s=st.floats(1, 400),
)
def test_every_decision_is_within_the_bounds(values: list[float | None], step_s: float) -> None:
    autoscaler, current = scaler(), 3
    for index, value in enumerate(values):
        chosen = autoscaler.decide([value], current, now_s=index * step_s)
        assert 2 <= chosen <= 8
        assert value is not None or chosen == current
        current = chosen
