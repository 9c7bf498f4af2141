"""The event writer: runs an ASGI send without a task, and leaves to one what cannot be completed at once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.types import Message

from frontend.response.event_writer import EventWriter, store_send


class Connection:
    """Stands for uvicorn: `send` waits while writing is paused, and then writes."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.writable = asyncio.Event()
        self.writable.set()
        self.error: Exception | None = None

    async def send(self, message: Message) -> None:
        await self.writable.wait()
        if self.error is not None:
            raise self.error
        self.sent.append(message["body"])


async def test_event_is_written_at_once() -> None:
    connection = Connection()
    assert EventWriter({}, connection.send).write(b"a")
    assert connection.sent == [b"a"]


async def test_event_that_has_to_wait_is_written_once_by_the_task_that_finishes_it() -> None:
    connection = Connection()
    writer = EventWriter({}, connection.send)
    connection.writable.clear()
    assert not writer.write(b"a")
    finishing = asyncio.create_task(writer.finish())
    await asyncio.sleep(0)
    assert connection.sent == []
    connection.writable.set()
    await asyncio.wait_for(finishing, 5)
    assert connection.sent == [b"a"]
    await writer.finish()
    assert writer.write(b"b")
    assert connection.sent == [b"a", b"b"]


async def test_event_that_became_writable_before_the_task_runs_is_written() -> None:
    connection = Connection()
    writer = EventWriter({}, connection.send)
    connection.writable.clear()
    assert not writer.write(b"a")
    connection.writable.set()
    await asyncio.wait_for(writer.finish(), 5)
    assert connection.sent == [b"a"]


async def test_cancelled_task_does_not_write_the_event() -> None:
    connection = Connection()
    writer = EventWriter({}, connection.send)
    connection.writable.clear()
    assert not writer.write(b"a")
    finishing = asyncio.create_task(writer.finish())
    await asyncio.sleep(0)
    finishing.cancel()
    await asyncio.wait({finishing}, timeout=5)
    connection.writable.set()
    await asyncio.sleep(0)
    assert finishing.cancelled()
    assert connection.sent == []


@pytest.mark.parametrize("has_to_wait", [False, True])
async def test_failure_is_raised_in_the_task_and_not_in_the_callback(has_to_wait: bool) -> None:
    connection = Connection()
    connection.error = RuntimeError("broken")
    writer = EventWriter({}, connection.send)
    if has_to_wait:
        connection.writable.clear()
    assert not writer.write(b"a")
    connection.writable.set()
    with pytest.raises(RuntimeError, match="broken"):
        await asyncio.wait_for(writer.finish(), 5)


async def test_stored_send_is_preferred_to_a_wrapped_one() -> None:
    connection, wrapped = Connection(), Connection()
    scope: dict[str, Any] = {"state": {}}
    store_send(scope, connection.send)
    EventWriter(scope, wrapped.send).write(b"a")
    assert (connection.sent, wrapped.sent) == ([b"a"], [])
