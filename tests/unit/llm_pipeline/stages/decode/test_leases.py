"""A client's requests live for as long as the client renews its lease."""

from __future__ import annotations

from llm_pipeline.stages.decode.leases import TICK_S, Leases


def ticks_until_expired(leases: Leases) -> int:
    for count in range(1, 1000):
        if leases.tick():
            return count
    raise AssertionError("the lease never expires")


def test_a_client_that_does_not_renew_loses_all_its_requests() -> None:
    leases = Leases(5.0)
    leases.add("front end", 1)
    leases.add("front end", 2)
    leases.add("other", 3)
    count = 0
    while not (expired := leases.tick()):
        leases.renew("other")
        count += 1
    assert sorted(expired) == [1, 2]
    assert count * TICK_S == 5.0


def test_renewals_and_new_requests_restart_the_lease() -> None:
    leases = Leases(5.0)
    leases.add("front end", 1)
    whole = ticks_until_expired(leases)
    leases.renew("front end")
    assert ticks_until_expired(leases) == whole
    leases.add("front end", 2)
    assert ticks_until_expired(leases) == whole


def test_clients_without_requests_are_forgotten() -> None:
    leases = Leases(5.0)
    for number in range(100):
        leases.renew(f"stranger {number}")
        leases.add("front end", number)
    for number in range(100):
        leases.remove("front end", number)
        leases.remove("unknown", number)
    assert leases.client_ids == frozenset()
    assert leases.tick() == []
