"""Disconnects clients that do not read their response: the last of three limits on the cost of one such client.

1. Writing waits while a connection has 64 KiB of unsent data (uvicorn, asyncio).
2. Chunks that arrive during that time are merged, up to a limit (`RunLimits` in frontend/generation/completion_run.py).
3. A connection without any progress for CLIENT_WRITE_TIMEOUT_S seconds is reset here, which also ends its request. A
   graceful close would wait for the client.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable, Collection
from typing import Any

import structlog

log = structlog.get_logger(__name__)

_CHECKS_PER_TIMEOUT = 10


class SlowClientMonitor:
    """Checks all connections of one server periodically.

    `connections` returns uvicorn's protocol objects, of which only `transport` is used. `on_cut` is called for each
    connection that is reset.
    """

    def __init__(
        self, connections: Callable[[], Collection[Any]], *, limit_s: float, on_cut: Callable[[], None]
    ) -> None:
        self._connections = connections
        self._limit_s = limit_s
        self._on_cut = on_cut
        self._blocked: dict[Any, tuple[int, float]] = {}  # transport -> unsent bytes, time since when unchanged

    async def watch(self) -> None:
        """Runs until cancelled."""
        while True:
            await asyncio.sleep(self._limit_s / _CHECKS_PER_TIMEOUT)
            self._check(asyncio.get_running_loop().time())

    def _check(self, now_s: float) -> None:
        blocked, self._blocked = self._blocked, {}
        for connection in list(self._connections()):
            transport = connection.transport
            unsent = transport.get_write_buffer_size() if transport is not None else 0
            if not unsent:
                continue
            # Any change since the last check is progress: either the response is written, or the client reads.
            previous, since_s = blocked.get(transport, (-1, now_s))
            since_s = since_s if unsent == previous else now_s
            if now_s - since_s < self._limit_s:
                self._blocked[transport] = (unsent, since_s)
                continue
            log.warning("slow_reader_cut_off", unsent_bytes=unsent)
            self._on_cut()
            _reset(transport)


def _reset(transport: Any) -> None:
    """Closes the connection at once and discards the kernel's send buffer, which may be megabytes."""
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()
