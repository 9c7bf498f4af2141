"""The ledger that workers share: reservations, settlements and the day's budget, by clocks that the test sets."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontend.limits.local_store import DAY_S, LocalStore
from frontend.limits.port import Admission, Demand, Settle, Verdict
from frontend.multiprocess.shared_state import SharedState
from tests.support.clock import Clock

Result = TypeVar("Result")


def now(call: Coroutine[Any, Any, Result]) -> Result:
    return asyncio.run(call)


def demand(tokens: int, *, minute: int | None = None, day: int | None = None, key: str = "a") -> Demand:
    return Demand(key, tokens, 1, minute, day, None, 60.0)


class Workers:
    """Two workers of one front end, whose clocks start at noon."""

    def __init__(self, folder: Path) -> None:
        self.wall, self.monotonic = Clock(DAY_S * 20_000 + DAY_S / 2), Clock(1000.0)
        SharedState.create(folder, 2)
        self.states = [SharedState.attach(folder, number, 2) for number in range(2)]
        self.stores = [self.store(state) for state in self.states]

    def store(self, state: SharedState, used_today: dict[str, int] | None = None) -> LocalStore:
        return LocalStore(state, used_today, monotonic=self.monotonic, wall=self.wall)

    def reserve(self, worker: int, wanted: Demand) -> Admission:
        return now(self.stores[worker].reserve(wanted))

    def sleep(self, seconds: float) -> None:
        self.wall.now_s += seconds
        self.monotonic.now_s += seconds


@pytest.fixture
def workers(tmp_path: Path) -> Workers:
    return Workers(tmp_path)


def test_requests_of_all_workers_count_together(workers: Workers) -> None:
    admitted = [now(workers.stores[turn % 2].count_request("a", 4)).is_admitted for turn in range(6)]
    assert admitted == [True] * 4 + [False] * 2
    assert now(workers.stores[0].count_request("b", 4)).is_admitted


def test_a_limit_that_changes_keeps_what_was_used(workers: Workers) -> None:
    assert now(workers.stores[0].count_request("a", 1)).is_admitted
    assert not now(workers.stores[0].count_request("a", 1)).is_admitted
    assert now(workers.stores[0].count_request("a", 2)).is_admitted
    assert not now(workers.stores[0].count_request("a", 2)).is_admitted


def test_parallel_requests_cannot_overrun_the_minute_and_the_rest_returns(workers: Workers) -> None:
    first = workers.reserve(0, demand(60, minute=100))
    assert first.settle is not None
    assert workers.reserve(1, demand(60, minute=100)).verdict is Verdict.MINUTE
    workers.sleep(2)
    first.settle(10)
    assert workers.reserve(1, demand(60, minute=100)).verdict is Verdict.ADMITTED


def test_more_use_than_reserved_is_charged(workers: Workers) -> None:
    first = workers.reserve(0, demand(10, minute=100, day=1000))
    assert first.settle is not None
    first.settle(95)
    assert workers.reserve(1, demand(10, minute=100)).verdict is Verdict.MINUTE
    assert workers.reserve(1, demand(1, day=1000)).day_used == 95


def test_a_limit_per_minute_that_is_set_later_counts_what_was_reserved_before(workers: Workers) -> None:
    first = workers.reserve(0, demand(90, day=1000))
    assert workers.reserve(1, demand(20, minute=100)).verdict is Verdict.MINUTE
    assert first.settle is not None
    first.settle(50)
    assert workers.reserve(1, demand(20, minute=100)).verdict is Verdict.ADMITTED


def test_a_budget_that_running_requests_hold_is_not_yet_used(workers: Workers) -> None:
    first = workers.reserve(0, demand(600, day=1000))
    assert first.settle is not None
    assert workers.reserve(1, demand(600, day=1000)).verdict is Verdict.DAY_RESERVED
    first.settle(500)
    refused = workers.reserve(1, demand(600, day=1000))
    assert (refused.verdict, refused.day_used, refused.day_reserved) == (Verdict.DAY, 500, 0)
    assert refused.day_reset_s == DAY_S / 2
    assert workers.reserve(1, demand(500, day=1000)).verdict is Verdict.ADMITTED


def test_the_budget_is_new_on_the_next_day_and_a_request_is_charged_to_the_day_of_its_end(workers: Workers) -> None:
    first, second = (workers.reserve(0, demand(500, day=1000)) for _ in range(2))
    assert first.settle is not None
    assert second.settle is not None
    first.settle(500)
    workers.sleep(DAY_S)
    assert workers.reserve(1, demand(600, day=1000)).verdict is Verdict.DAY_RESERVED
    second.settle(300)
    admitted = workers.reserve(1, demand(600, day=1000))
    assert (admitted.verdict, admitted.day_used) == (Verdict.ADMITTED, 300)


def test_a_dead_workers_reservations_return_to_the_day(workers: Workers) -> None:
    workers.reserve(0, demand(900, day=1000))
    workers.states[1].clear(0)  # as the supervisor does
    assert workers.reserve(1, demand(900, day=1000)).verdict is Verdict.ADMITTED


def test_a_restarted_front_end_goes_on_with_the_days_usage(tmp_path: Path, workers: Workers) -> None:
    (tmp_path / "new").mkdir()
    SharedState.create(tmp_path / "new", 1)
    store = workers.store(SharedState.attach(tmp_path / "new", 0, 1), {"a": 950})
    assert now(store.reserve(demand(100, day=1000))).verdict is Verdict.DAY
    assert now(store.reserve(demand(100, day=1000, key="b"))).verdict is Verdict.ADMITTED


def test_a_restarted_worker_does_not_count_the_days_usage_again(workers: Workers) -> None:
    settle = workers.reserve(0, demand(100, day=1000)).settle
    assert settle is not None
    settle(100)
    again = workers.store(workers.states[1], {"a": 100})
    assert now(again.reserve(demand(1, day=1000))).day_used == 100


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("reserve"), st.integers(0, 1), st.integers(1, 60)),
        st.tuples(st.just("settle"), st.integers(0, 10), st.integers(0, 60)),
        st.tuples(st.just("sleep"), st.integers(0, 50), st.just(0)),
    ),
    max_size=60,
)


@given(STEPS)
def test_any_mix_of_requests_stays_within_both_limits(steps: list[tuple[str, int, int]]) -> None:
    """The model: what is reserved and not settled, and what was used, never exceed the limits."""
    per_minute, per_day = 100, 400
    with TemporaryDirectory() as folder:
        workers = Workers(Path(folder))
        charged: list[list[float]] = []  # time, tokens
        running: list[tuple[Settle, list[float], int]] = []
        used_today = 0
        for step, number, tokens in steps:
            if step == "sleep":
                workers.sleep(number)
            elif step == "reserve":
                admission = workers.reserve(number, demand(tokens, minute=per_minute, day=per_day))
                if admission.settle is not None:
                    charged.append([workers.monotonic.now_s, tokens])
                    running.append((admission.settle, charged[-1], tokens))
            elif running:
                settle, charge, reserved = running.pop(number % len(running))
                used = min(tokens, reserved)
                settle(used)
                charge[1] = used
                used_today += used
            recent = sum(part for at_s, part in charged if workers.monotonic.now_s - at_s < 60)
            assert recent <= per_minute
            assert used_today + sum(reserved for _, _, reserved in running) <= per_day
        for settle, _, reserved in running:
            settle(reserved)
            used_today += reserved
        last = workers.reserve(0, demand(per_day + 1, day=per_day))
        assert (last.day_used, last.day_reserved) == (used_today, 0)
