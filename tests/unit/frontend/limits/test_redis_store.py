"""The same limits in a real Redis, asked by several front ends at once."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from frontend.limits.port import Demand, StoreUnavailableError, Verdict
from frontend.limits.redis_store import RedisStore
from frontend.redis_client import RedisClient
from launcher.ports import free_ports
from tests.support.app import until
from tests.support.waiting import DEADLINE_S


@pytest.fixture
async def front_ends(redis_url: str) -> AsyncIterator[list[RedisStore]]:
    stores = [RedisStore(RedisClient(redis_url, timeout_s=DEADLINE_S)) for _ in range(3)]
    yield stores
    for store in stores:
        await store.close()


@pytest.fixture
def demand() -> Demand:
    """Of a key that no other test has."""
    return Demand(uuid.uuid4().hex, 10, 1, None, None, None, 60.0)


async def test_requests_at_once_are_admitted_up_to_the_limit(front_ends: list[RedisStore], demand: Demand) -> None:
    states = await asyncio.gather(*(front_ends[turn % 3].count_request(demand.key, 20) for turn in range(60)))
    assert sum(state.is_admitted for state in states) == 20
    assert max(state.used for state in states) == 20
    refused = next(state for state in states if not state.is_admitted)
    assert 55 < refused.wait_s <= refused.reset_s <= 61
    assert sorted(state.used for state in states if state.is_admitted) == list(range(1, 21))


async def test_parallel_requests_cannot_overrun_the_minute(front_ends: list[RedisStore], demand: Demand) -> None:
    wanted = replace(demand, tokens_per_minute=105)
    admissions = await asyncio.gather(*(front_ends[turn % 3].reserve(wanted) for turn in range(40)))
    assert sum(admission.verdict is Verdict.ADMITTED for admission in admissions) == 10
    assert {admission.verdict for admission in admissions} == {Verdict.ADMITTED, Verdict.MINUTE}
    assert all(admission.minute is not None and admission.minute.used <= 105 for admission in admissions)


async def test_the_rest_of_a_reservation_returns(front_ends: list[RedisStore], demand: Demand) -> None:
    wanted = replace(demand, tokens=60, tokens_per_minute=100, tokens_per_day=100)
    first = await front_ends[0].reserve(wanted)
    assert first.settle is not None
    assert (await front_ends[1].reserve(wanted)).verdict is Verdict.DAY_RESERVED
    first.settle(10)

    async def fits() -> bool:
        return (await front_ends[1].reserve(wanted)).verdict is Verdict.ADMITTED

    await until(fits)
    refused = await front_ends[2].reserve(replace(wanted, tokens=95))
    assert (refused.verdict, refused.day_used, refused.day_reserved) == (Verdict.DAY, 10, 60)
    assert 0 < refused.day_reset_s <= 86_400


async def test_more_use_than_reserved_is_charged(front_ends: list[RedisStore], demand: Demand) -> None:
    wanted = replace(demand, tokens_per_minute=100)
    first = await front_ends[0].reserve(wanted)
    assert first.settle is not None
    first.settle(95)

    async def is_full() -> bool:
        admission = await front_ends[1].reserve(replace(wanted, tokens=6))
        return admission.verdict is Verdict.MINUTE and admission.minute is not None and admission.minute.used == 95

    await until(is_full)


async def test_choices_in_flight_of_all_front_ends_count_together(front_ends: list[RedisStore], demand: Demand) -> None:
    wanted = replace(demand, choices=2, max_in_flight=5)
    admissions = await asyncio.gather(*(front_ends[turn % 3].reserve(wanted) for turn in range(6)))
    settles = [admission.settle for admission in admissions if admission.settle is not None]
    assert len(settles) == 2
    assert {admission.verdict for admission in admissions} == {Verdict.ADMITTED, Verdict.CONCURRENCY}
    settles[0](1)

    async def fits() -> bool:
        return (await front_ends[0].reserve(wanted)).verdict is Verdict.ADMITTED

    await until(fits)


async def test_a_lease_that_is_not_settled_is_charged_in_full(front_ends: list[RedisStore], demand: Demand) -> None:
    wanted = replace(demand, tokens_per_day=100, max_in_flight=1, lease_s=0.2)
    lost = await front_ends[0].reserve(wanted)
    assert lost.settle is not None
    assert (await front_ends[1].reserve(wanted)).verdict is Verdict.CONCURRENCY

    async def is_charged() -> bool:
        admission = await front_ends[1].reserve(replace(wanted, lease_s=60))
        return (admission.verdict, admission.day_used) == (Verdict.ADMITTED, 10)

    await until(is_charged)
    lost.settle(0)  # too late: it has no effect
    await front_ends[0].close()
    assert (await front_ends[1].reserve(wanted)).day_used == 10


async def test_a_redis_that_does_not_answer_fails_in_time_and_without_its_url(demand: Demand) -> None:
    store = RedisStore(RedisClient(f"redis://:a-password@127.0.0.1:{free_ports(1)[0]}/0"))
    with pytest.raises(StoreUnavailableError) as caught:
        await asyncio.wait_for(store.reserve(demand), 5)
    assert "password" not in str(caught.value)
    await store.close()


async def test_a_redis_that_accepts_and_is_silent_fails_in_time(demand: Demand) -> None:
    async def be_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(be_silent, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    store = RedisStore(RedisClient(f"redis://127.0.0.1:{port}/0"))
    with pytest.raises(StoreUnavailableError):
        await asyncio.wait_for(store.count_request(demand.key, 1), 5)
    await store.close()
    server.close()
