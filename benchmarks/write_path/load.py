"""The load, the process that reads it, and the measurement of what one event costs."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeAlias

WriteEvent: TypeAlias = Callable[[], object]  # writes one event of one stream

_CLIENT_TIMEOUT_S = 60.0
_LAST_BYTES_S = 0.1  # for what is still in buffers when the last event has been written


@dataclass(frozen=True)
class EventLoad:
    """Streams with events at the same moments."""

    streams: int = 64
    events: int = 400  # of each stream
    rate_hz: float = 200.0


@asynccontextmanager
async def client_process(*arguments: object) -> AsyncIterator[None]:
    """Runs the client with these arguments, and waits for its end on exit. Raises RuntimeError if it fails."""
    program = (sys.executable, "-m", "benchmarks.write_path.client", *map(str, arguments))
    process = await asyncio.create_subprocess_exec(*program)
    try:
        yield
        if status := await asyncio.wait_for(process.wait(), _CLIENT_TIMEOUT_S):
            raise RuntimeError(f"The client has failed with status {status}.")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def wait_until(condition: Callable[[], bool], limit_s: float = 20.0) -> None:
    """Polls a condition. Raises TimeoutError after `limit_s` seconds."""
    deadline_s = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline_s:
            raise TimeoutError("The measured server or its client did not start in time.")
        await asyncio.sleep(0.02)


async def cpu_per_event_us(writes: Sequence[WriteEvent], load: EventLoad) -> float:
    """Writes the events of all streams in bursts, and returns this process's CPU time for each event in us."""
    loop = asyncio.get_running_loop()
    due_s, started_s = loop.time(), time.process_time()
    for _ in range(load.events):
        for write in writes:
            write()
        due_s += 1 / load.rate_hz
        await asyncio.sleep(max(due_s - loop.time(), 0.0))
    await asyncio.sleep(_LAST_BYTES_S)
    return (time.process_time() - started_s) / (load.events * len(writes)) * 1e6
