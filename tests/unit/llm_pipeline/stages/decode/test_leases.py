"""An owner's requests live as long as it says so; keys that were stopped early are remembered, and forgotten."""

from __future__ import annotations

import pytest

from llm_pipeline.stages.decode import pending_cancellations as early_stops
from llm_pipeline.stages.decode.leases import TICK_S, Leases
from llm_pipeline.stages.decode.pending_cancellations import PendingCancellations


def ticks_until_expired(leases: Leases) -> int:
    for count in range(1, 1000):
        if leases.tick():
            return count
    raise AssertionError("never")


def test_a_silent_owner_loses_all_its_requests_after_its_lease() -> None:
    leases = Leases(5.0)
    leases.add("front end", "a")
    leases.add("front end", "b")
    leases.add("other", "c")
    count = 0
    while not (expired := leases.tick()):
        leases.renew("other")
        count += 1
    assert sorted(expired) == ["a", "b"]
    assert count * TICK_S == 5.0


def test_each_sign_of_life_starts_the_lease_anew() -> None:
    leases = Leases(5.0)
    leases.add("front end", "a")
    whole = ticks_until_expired(leases)
    leases.renew("front end")
    assert ticks_until_expired(leases) == whole
    leases.add("front end", "b")
    assert ticks_until_expired(leases) == whole


def test_nothing_is_kept_of_owners_without_requests() -> None:
    leases = Leases(5.0)
    for number in range(100):
        leases.renew(f"stranger {number}")
        leases.add("front end", f"key {number}")
    for number in range(100):
        leases.remove("front end", f"key {number}")
        leases.remove("nobody", f"key {number}")
    assert len(leases) == 0
    assert leases._left == {}
    assert leases.tick() == []


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_an_early_stop_is_forgotten_after_a_while() -> None:
    """A client that uses its keys again must not meet the stop of an earlier request for ever."""
    clock = Clock()
    stops = PendingCancellations(clock)
    stops.remember("a")
    stops.remember("b")
    clock.now_s = 10
    assert stops.began("a")
    clock.now_s = 31
    assert not stops.began("b")


def test_memory_of_early_stops_is_bounded_in_number_and_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(early_stops, "_KEPT", 3)
    clock = Clock()
    stops = PendingCancellations(clock)
    for key in "abcd":
        stops.remember(key)
    assert len(stops) == 3
    clock.now_s = 31
    stops.remember("e")
    assert len(stops) == 1
    for number in range(10):
        stops.ended(str(number))
    assert len(stops._ended) == 3
