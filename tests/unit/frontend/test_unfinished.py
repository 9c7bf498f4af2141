"""A coroutine whose first step runs without a task, and the rest in one."""

from __future__ import annotations

import asyncio

import pytest

from frontend.unfinished import Unfinished


async def add(gates: list[asyncio.Event], amount: int) -> int:
    for gate in gates:
        await gate.wait()
    return amount + 1


async def test_rest_runs_in_a_task_and_returns_the_result() -> None:
    gates = [asyncio.Event() for _ in range(3)]
    adding = add(gates, 1)
    rest = asyncio.ensure_future(Unfinished(adding, adding.send(None)))
    for gate in gates:
        await asyncio.sleep(0)
        assert not rest.done()
        gate.set()
    assert await asyncio.wait_for(rest, 5) == 2


async def test_coroutine_that_yields_to_the_event_loop() -> None:
    sleeping = asyncio.sleep(0, "awake")
    assert await asyncio.wait_for(Unfinished(sleeping, sleeping.send(None)), 5) == "awake"


async def test_timeout_closes_the_coroutine() -> None:
    adding = add([asyncio.Event()], 1)
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(Unfinished(adding, adding.send(None)), 0.01)
    with pytest.raises(RuntimeError, match="cannot reuse"):
        adding.send(None)
