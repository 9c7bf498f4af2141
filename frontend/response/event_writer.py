"""Writes the events of a stream from inside the callback that brings a chunk, without waking the response's task.

Waking a task for each event costs more than the write: the event loop schedules it and resumes every coroutine from
uvicorn's down to the response's. An ASGI `send` is a coroutine, too, but uvicorn's only waits while its connection has
64 KiB of unsent data. Until then its first step is all of it, and no task is needed to run that.
"""

from __future__ import annotations

from collections.abc import Coroutine, Generator
from typing import Any

from starlette.types import Scope, Send

_SCOPE_KEY = "unwrapped_send"


def store_send(scope: Scope, send: Send) -> None:
    """Stores the outermost `send` of a request. The app's layers wrap it only to see the start of the response."""
    scope["state"][_SCOPE_KEY] = send


class EventWriter:
    """Writes parts of one response whose start has been sent. Used by one task and by callbacks while it waits."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._send: Send = scope.get("state", {}).get(_SCOPE_KEY, send)
        self._unfinished: _UnfinishedSend | None = None
        self._error: Exception | None = None

    def write(self, body: bytes) -> bool:
        """Writes an event. Returns False if the task has to `finish` it before the next write. Never raises."""
        send: Any = self._send({"type": "http.response.body", "body": body, "more_body": True})
        try:
            waits_for = send.send(None)
        except StopIteration:
            return True
        except Exception as error:  # noqa: BLE001 - raised by `finish`: the caller has other streams to serve
            self._error = error
        else:
            self._unfinished = _UnfinishedSend(send, waits_for)
        return False

    async def finish(self) -> None:
        """Returns when the last write is complete. Raises its exception."""
        if self._unfinished is not None:
            unfinished, self._unfinished = self._unfinished, None
            await unfinished
        if self._error is not None:
            raise self._error


class _UnfinishedSend:
    """The rest of a coroutine that has begun without a task and waits for `waits_for`. To be awaited by a task."""

    def __init__(self, send: Coroutine[Any, Any, None], waits_for: Any) -> None:
        self._send = send
        self._waits_for = waits_for

    def __await__(self) -> Generator[Any, None, None]:
        try:
            yield self._waits_for  # to the event loop, which continues the task when it is done
            yield from self._send.__await__()
        finally:
            self._send.close()
