"""CPU time of one event, measured with more and more layers around the system call."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

from benchmarks.write_path.load import EventLoad, WriteEvent, client_process, cpu_per_event_us, wait_until
from benchmarks.write_path.servers import EVENT, BareApp, PushedGenerator, RawServer, bare_uvicorn, front_end

_CHUNK = b"%x\r\n%b\r\n" % (len(EVENT), EVENT)  # what uvicorn makes of an event


async def system_call_us(load: EventLoad) -> float:
    """`write` to each socket."""
    async with _raw_server(load) as server:
        numbers = [transport.get_extra_info("socket").fileno() for transport in server.transports]
        return await cpu_per_event_us([_writer_to(number) for number in numbers], load)


def _writer_to(number: int) -> WriteEvent:
    return lambda: os.write(number, _CHUNK)


async def transport_us(load: EventLoad) -> float:
    """The event loop's `transport.write`."""
    async with _raw_server(load) as server:
        return await cpu_per_event_us([_writer(transport.write) for transport in server.transports], load)


def _writer(write: Callable[[bytes], object]) -> WriteEvent:
    return lambda: write(_CHUNK)


@asynccontextmanager
async def _raw_server(load: EventLoad) -> AsyncIterator[RawServer]:
    server = RawServer()
    await server.start()
    async with client_process(server.port, "streams", load.streams):
        await wait_until(lambda: len(server.transports) == load.streams)
        yield server
        await server.stop()


async def uvicorn_us(load: EventLoad) -> float:
    """uvicorn's `send` with a constant event."""
    app = BareApp()
    async with bare_uvicorn(app) as port, client_process(port, "streams", load.streams):
        us = await _measure(app.writes, load)
        app.is_over.set()
    return us


async def front_end_us(load: EventLoad) -> float:
    """The whole front end: a new chunk, its metrics, the event's text, and uvicorn's `send`."""
    generator = PushedGenerator()
    async with front_end(generator) as port, client_process(port, "streams", load.streams):
        us = await _measure(generator.writes, load)
        generator.is_over.set()
    return us


async def chat_us(load: EventLoad) -> float:
    """The same for chat: its own events. A chat's request is not measured here."""
    generator = PushedGenerator()
    async with front_end(generator) as port, client_process(port, "streams", load.streams, "chat"):
        us = await _measure(generator.writes, load)
        generator.is_over.set()
    return us


async def _measure(writes: Sequence[WriteEvent], load: EventLoad) -> float:
    await wait_until(lambda: len(writes) == load.streams)
    return await cpu_per_event_us(writes, load)


LAYERS: dict[str, Callable[[EventLoad], Awaitable[float]]] = {
    "system call": system_call_us,
    "event loop's transport": transport_us,
    "uvicorn": uvicorn_us,
    "front end": front_end_us,
    "chat instead of a completion": chat_us,
}
