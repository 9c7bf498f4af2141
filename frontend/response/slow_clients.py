"""Cuts off clients that do not read their answer: the last of three bounds on what one of them costs.

1. Our writing waits when a connection holds 64 KiB that the client has not taken (uvicorn, asyncio).
2. Meanwhile, what arrives from the engine gathers in the run, in merged form, up to a limit (frontend/generation/completion_run.py).
3. A connection that takes nothing at all for CLIENT_WRITE_TIMEOUT_S seconds is reset here, which also ends its request.
   Closing it politely would wait for the client.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable, Collection
from typing import Any

import structlog

log = structlog.get_logger(__name__)


class SlowClientMonitor:
    """Looks at all connections of one server, some times within each limit.

    `connections` gives uvicorn's protocol objects; of each, its `transport` is used. `on_cut` is told of each cut.
    """

    def __init__(
        self, connections: Callable[[], Collection[Any]], *, limit_s: float, on_cut: Callable[[], None]
    ) -> None:
        self._connections = connections
        self._limit_s = limit_s
        self._on_cut = on_cut
        self._stuck: dict[Any, tuple[int, float]] = {}  # transport -> unsent bytes, since when as many

    async def watch(self) -> None:
        """Runs until cancelled."""
        while True:
            await asyncio.sleep(self._limit_s / 10)
            self._look(asyncio.get_running_loop().time())

    def _look(self, now_s: float) -> None:
        stuck, self._stuck = self._stuck, {}
        for connection in list(self._connections()):
            transport = connection.transport
            unsent = transport.get_write_buffer_size() if transport is not None else 0
            if not unsent:
                continue
            # More or fewer bytes than at the last look: either we still write, or the client takes some.
            before, since_s = stuck.get(transport, (-1, now_s))
            since_s = since_s if unsent == before else now_s
            if now_s - since_s < self._limit_s:
                self._stuck[transport] = (unsent, since_s)
                continue
            log.warning("slow_reader_cut_off", unsent_bytes=unsent)
            self._on_cut()
            _reset(transport)


def _reset(transport: Any) -> None:
    """Close at once, and drop what the kernel holds for the client, which may be megabytes, too."""
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()
