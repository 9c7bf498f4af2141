"""The measurement of the write path, with a load that takes a moment."""

from __future__ import annotations

import pytest

from benchmarks.write_path.__main__ import event_table, measure_events, measure_requests
from benchmarks.write_path.event_layers import LAYERS
from benchmarks.write_path.load import EventLoad, client_process
from benchmarks.write_path.request_layers import parts_us


async def test_every_layer_is_measured() -> None:
    load = EventLoad(streams=3, events=4)
    total_us = await measure_events(load, rounds=1)
    assert list(total_us) == list(LAYERS)
    assert all(us > 0 for us in total_us.values())
    assert event_table(load, total_us).count("\n| ") == 2 + len(LAYERS)


async def test_requests_are_measured() -> None:
    assert all(us > 0 for us in (await measure_requests(16, rounds=1)).values())
    assert all(us > 0 for us in parts_us().values())


def test_shares_of_the_layers_add_up() -> None:
    lines = event_table(EventLoad(), {"system call": 2.0, "uvicorn": 3.5}).splitlines()
    assert lines[-2:] == ["| system call | 2.0 | 2.0 |", "| uvicorn | 1.5 | 3.5 |"]


async def test_client_that_fails_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="failed"):
        async with client_process(1, "streams", 1):
            pass
