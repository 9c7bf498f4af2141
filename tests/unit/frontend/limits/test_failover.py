"""A shared store that fails: what is admitted, how often it is asked, and that it is counted."""

from __future__ import annotations

import pytest

from frontend.limits.failover import FailoverStore
from frontend.limits.local_store import LocalStore
from frontend.limits.port import Admission, Demand, StoreUnavailableError
from frontend.limits.window import WindowState
from frontend.multiprocess.shared_state import SharedState
from tests.support.clock import Clock


class Shared:
    """A shared store that can be down."""

    def __init__(self) -> None:
        self.is_up = True
        self.asked = 0
        self.is_closed = False

    async def count_request(self, key: str, limit: int) -> WindowState:
        self.asked += 1
        if not self.is_up:
            raise StoreUnavailableError("down")
        return WindowState(True, 1, 0.0, 60.0)

    async def reserve(self, demand: Demand) -> Admission:
        raise StoreUnavailableError("down")

    async def close(self) -> None:
        self.is_closed = True


class Case:
    def __init__(self, *, is_open: bool) -> None:
        self.clock, self.shared, self.failures = Clock(), Shared(), 0
        own = LocalStore(SharedState.single_process()) if is_open else None
        self.store = FailoverStore(self.shared, own, on_failure=self._count, clock=self.clock)

    def _count(self) -> None:
        self.failures += 1


async def test_open_counts_in_this_front_end_alone() -> None:
    case = Case(is_open=True)
    case.shared.is_up = False
    admitted = [(await case.store.count_request("a", 2)).is_admitted for _ in range(3)]
    assert admitted == [True, True, False]
    assert case.failures == 3


async def test_closed_refuses() -> None:
    case = Case(is_open=False)
    case.shared.is_up = False
    for _ in range(2):
        with pytest.raises(StoreUnavailableError):
            await case.store.count_request("a", 2)
    assert case.failures == 2


async def test_a_store_that_has_failed_is_asked_again_after_a_second() -> None:
    case = Case(is_open=True)
    case.shared.is_up = False
    for _ in range(5):
        await case.store.count_request("a", 9)
    assert case.shared.asked == 1
    case.shared.is_up = True
    case.clock.now_s += 1
    assert (await case.store.count_request("a", 9)).used == 1  # the shared store's answer
    assert case.shared.asked == 2
    await case.store.close()
    assert case.shared.is_closed
