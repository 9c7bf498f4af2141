"""Writes the events of a stream from inside the callback that brings a chunk, without waking the response's task.

Waking a task for each event costs more than the write. An ASGI `send` is a coroutine, too, but uvicorn's waits only
while its connection has 64 KiB of unsent data. Until then its first step is all of it (frontend/unfinished.py).
"""

from __future__ import annotations

from typing import Any

from starlette.types import Scope, Send

from frontend.unfinished import Unfinished

_SCOPE_KEY = "unwrapped_send"


def store_send(scope: Scope, send: Send) -> None:
    """Stores the outermost `send` of a request. The app's layers wrap it only to see the start of the response."""
    scope["state"][_SCOPE_KEY] = send


class EventWriter:
    """Writes parts of one response whose start has been sent. Used by one task and by callbacks while it waits."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._send: Send = scope.get("state", {}).get(_SCOPE_KEY, send)
        self._unfinished: Unfinished[None] | None = None
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
            self._unfinished = Unfinished(send, waits_for)
        return False

    async def finish(self) -> None:
        """Returns when the last write is complete. Raises its exception."""
        if self._unfinished is not None:
            unfinished, self._unfinished = self._unfinished, None
            await unfinished
        if self._error is not None:
            raise self._error
