"""Concurrency limits: shared by all workers, acquired all or none, with an estimate of when to retry."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from frontend.generation.concurrency import ConcurrencyLimit, acquire_slots
from frontend.multiprocess.shared_state import SharedCounter, SharedState
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.runtime.retry_after import RetryAfterEstimator


def limit_of(
    limit: int | None, workers: SharedState | None = None, *, counter: str = "in_flight m"
) -> ConcurrencyLimit:
    return ConcurrencyLimit(limit, workers or SharedState.single_process(), counter, scope_label="This model")


def test_limit_applies_to_all_workers_together(tmp_path: Path) -> None:
    SharedState.create(tmp_path, 2)
    one, other = (limit_of(3, SharedState.attach(tmp_path, number, 2)) for number in range(2))
    slots = one.acquire(2)
    with pytest.raises(PipelineError) as caught:
        other.acquire(2)
    assert caught.value.code is ErrorCode.QUEUE_FULL
    other.acquire(1)
    for _ in range(2):
        slots.release(had_token=False)
    assert (one.in_flight, one.queued) == (0, 0)
    other.acquire(2)


def test_slots_are_queued_until_their_first_token() -> None:
    limit = limit_of(3)
    slots = limit.acquire(3)
    slots.first_token()
    assert (limit.in_flight, limit.queued) == (3, 2)
    slots.release(had_token=True)
    slots.release(had_token=False)
    assert (limit.in_flight, limit.queued) == (1, 1)


def test_slots_of_several_limits_are_acquired_all_or_none() -> None:
    workers = SharedState.single_process()
    model, server = limit_of(10, workers), limit_of(2, workers, counter="in_flight")
    acquire_slots([model, server], 2)
    for _ in range(3):
        with pytest.raises(PipelineError):
            acquire_slots([model, server], 1)
    assert [(limit.in_flight, limit.queued) for limit in (model, server)] == [(2, 2), (2, 2)]


def test_check_and_acquisition_are_one_step(tmp_path: Path) -> None:
    """Two workers that check at the same moment must not both get the last slot."""
    held: list[bool] = []
    seen: list[tuple[str, bool]] = []

    class WatchedCounter(SharedCounter):
        def __init__(self, counter: SharedCounter) -> None:
            self._counter = counter

        @property
        def total(self) -> int:
            seen.append(("check", bool(held)))
            return self._counter.total

        def add(self, amount: int) -> None:
            seen.append(("acquire", bool(held)))
            self._counter.add(amount)

    class WatchedState(SharedState):
        @contextmanager
        def lock(self) -> Iterator[bool]:
            held.append(True)
            yield True
            held.pop()

        def counter(self, name: str) -> SharedCounter:
            return WatchedCounter(super().counter(name))

    SharedState.create(tmp_path, 1)
    limit_of(1, WatchedState.attach(tmp_path, 0, 1)).acquire(1)
    assert seen == [("check", True), ("acquire", True)]


def test_retry_delay_follows_the_limits_own_throughput() -> None:
    now_s = 100.0
    limit = ConcurrencyLimit(
        2,
        SharedState.single_process(),
        "in_flight m",
        scope_label="This model",
        create_estimator=lambda: RetryAfterEstimator(clock=lambda: now_s),
    )
    slots = limit.acquire(2)
    for _ in range(2):  # one ends every 8 s
        now_s += 8.0
        slots.release(had_token=False)
        limit.acquire(1)
    with pytest.raises(PipelineError) as caught:
        limit.acquire(1)
    assert caught.value.retry_after_s == 8.0
    assert caught.value.message == (
        "This model is at its limit of 2 concurrent completions. Retry after the delay in the Retry-After header."
    )


def test_retry_delay_grows_with_the_missing_slots_and_the_earlier_rejections() -> None:
    now_s = 100.0
    limit = ConcurrencyLimit(
        4,
        SharedState.single_process(),
        "in_flight",
        scope_label="This server",
        create_estimator=lambda: RetryAfterEstimator(clock=lambda: now_s),
    )
    slots = limit.acquire(4)
    for _ in range(4):  # one ends every 5 s
        now_s += 5.0
        slots.release(had_token=False)
        limit.acquire(1)
    delays_s = []
    for choices in (1, 1, 3):
        with pytest.raises(PipelineError) as rejection:
            limit.acquire(choices)
        delays_s.append(rejection.value.retry_after_s)
    assert delays_s == [5.0, 10.0, 25.0]


def test_without_a_limit_everything_is_admitted() -> None:
    limit = limit_of(None)
    limit.acquire(10_000)
    assert limit.in_flight == 10_000
