"""Places of one model: their limit holds for all workers, and a refusal says how long to wait."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from frontend.generation.concurrency import ConcurrencyLimit
from frontend.multiprocess.shared_state import SharedState
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.runtime.retry_after import RetryAfterEstimator


def test_the_limit_holds_for_all_workers_together(tmp_path: Path) -> None:
    SharedState.create(tmp_path, 2)
    one, other = (ConcurrencyLimit(3, SharedState.attach(tmp_path, number, 2), "in_flight m") for number in range(2))
    one.admit(2)
    with pytest.raises(PipelineError) as caught:
        other.admit(2)
    assert caught.value.code is ErrorCode.QUEUE_FULL
    other.admit(1)
    one.withdraw(2)
    assert (one.in_flight, one.queued) == (0, 0)
    other.admit(2)


def test_looking_and_taking_is_one_step(tmp_path: Path) -> None:
    """Two workers that look at the same moment must not both find the last place free."""
    SharedState.create(tmp_path, 1)
    workers = SharedState.attach(tmp_path, 0, 1)
    held: list[bool] = []

    @contextmanager
    def lock() -> Iterator[None]:
        held.append(True)
        yield
        held.clear()

    places = ConcurrencyLimit(1, workers, "in_flight m")
    counter = places._in_flight_of_all
    seen: list[tuple[str, bool]] = []

    class Watched:
        @property
        def total(self) -> int:
            seen.append(("look", bool(held)))
            return counter.total

        def add(self, amount: int) -> None:
            seen.append(("take", bool(held)))
            counter.add(amount)

    workers.lock = lock  # type: ignore[method-assign]
    places._in_flight_of_all = Watched()  # type: ignore[assignment]
    places.admit(1)
    assert seen == [("look", True), ("take", True)]


def test_the_wait_follows_the_models_own_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0
    monkeypatch.setattr(
        "frontend.generation.concurrency.RetryAfterEstimator", lambda: RetryAfterEstimator(clock=lambda: now_s)
    )
    places = ConcurrencyLimit(2, SharedState.single_process(), "in_flight m", owner=" of this model")
    places.admit(2)
    for _ in range(2):  # one ends every 8 s
        now_s += 8.0
        places.choice_ended(had_token=False)
        places.admit(1)
    with pytest.raises(PipelineError) as caught:
        places.admit(1)
    assert caught.value.retry_after_s == 8.0
    assert "of this model" in caught.value.message


def test_without_a_limit_everything_is_let_in() -> None:
    places = ConcurrencyLimit(None, SharedState.single_process(), "in_flight m")
    places.admit(10_000)
    assert places.in_flight == 10_000
