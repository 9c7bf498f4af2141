"""Requests start in order, a limited number in each iteration of the event loop."""

from __future__ import annotations

import asyncio
from functools import partial

from hypothesis import given
from hypothesis import strategies as st

from frontend.transport.start_queue import MAX_STARTS, StartQueue


@given(st.lists(st.integers(0, 3 * MAX_STARTS), max_size=10))
def test_all_start_in_order_and_few_in_each_iteration(arrivals: list[int]) -> None:
    """`arrivals` are the numbers of requests that arrive in each iteration."""

    async def run() -> None:
        queue, expected = StartQueue(), 0
        started: list[int] = []
        for count in arrivals:
            before = len(started)
            for _ in range(count):
                queue.start(partial(started.append, expected))
                expected += 1
            assert len(started) - before <= MAX_STARTS
            await asyncio.sleep(0)
        for _ in range(sum(arrivals) // MAX_STARTS + 1):
            await asyncio.sleep(0)
        assert started == list(range(expected))

    asyncio.run(run())


def test_a_single_request_starts_at_once() -> None:
    async def run() -> None:
        queue = StartQueue()
        started: list[int] = []
        queue.start(partial(started.append, 1))
        assert started == [1]

    asyncio.run(run())
