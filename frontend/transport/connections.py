"""The connections of one process that have no request: their times, and which of them gives way to a new one.

Each table is in the order of time, so that every operation takes constant time, however many connections there are.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import structlog

from frontend.transport.descriptors import PROBE_CONNECTIONS

log = structlog.get_logger(__name__)

_CHECKS_PER_TIMEOUT = 10
_MAX_CHECK_INTERVAL_S = 1.0
_EXPIRED_AT_ONCE = 64  # in one iteration of the event loop, of which there may be thousands
_MIN_AGE_S = 1.0  # in which the request of a new connection may arrive


class Connection(Protocol):
    """A connection as this module sees it."""

    def on_head_timeout(self) -> None:
        """No whole request head has arrived in time."""

    def drop(self) -> None:
        """Closes the connection at once."""


@dataclass(frozen=True)
class ConnectionLimits:
    """Limits of one process. Times in seconds."""

    max_connections: int
    head_timeout_s: float
    linger_s: float = 5.0  # for a client to read its error and close, after a response before the end of its request


class ConnectionTable:
    """All connections of one process. Belongs to its event loop.

    Beyond `max_connections`, a new connection takes the place of the one that has been without a request for the
    longest time: a client that holds connections loses them to those that use theirs. A reserve beyond that number lets
    new connections live for a moment, in which their request can arrive, and is for probes if all others have requests.
    """

    def __init__(self, limits: ConnectionLimits) -> None:
        self.is_draining = False
        """Whether every response is the last one of its connection, so that clients move to another server."""
        self._limits = limits
        self._count = 0
        # Connection -> time since which it is in this state
        self._lingering: dict[Connection, float] = {}  # has its response, but sends on
        self._in_head: dict[Connection, float] = {}  # new, or with a part of a head
        self._idle: dict[Connection, float] = {}  # between two requests

    @property
    def count(self) -> int:
        """Open connections."""
        return self._count

    @property
    def is_full(self) -> bool:
        """Whether that many connections have a request that only probes are served."""
        beyond = self._count - self._limits.max_connections
        return beyond >= 0 and beyond >= len(self._lingering) + len(self._in_head) + len(self._idle)

    def opens(self, connection: Connection) -> bool:
        """A client has connected. Returns False if there is no place; `closes` must follow in any case."""
        beyond = self._count - self._limits.max_connections
        has_place = beyond < 0 or self._drop_oldest(_MIN_AGE_S) or beyond < PROBE_CONNECTIONS or self._drop_oldest(0.0)
        self._count += 1
        if has_place:
            self._in_head[connection] = time.monotonic()
        return has_place

    def _drop_oldest(self, min_age_s: float) -> bool:
        """Drops the connection that has been without a request for the longest time, if it is old enough."""
        last_s = time.monotonic() - min_age_s
        oldest = [next(iter(table.items())) for table in (self._lingering, self._in_head, self._idle) if table]
        if not oldest:
            return False
        connection, since_s = min(oldest, key=lambda item: item[1])
        if since_s > last_s:
            return False
        self._forget(connection)
        connection.drop()
        return True

    def closes(self, connection: Connection) -> None:
        """The connection is closed."""
        self._count -= 1
        self._forget(connection)

    def awaits_head(self, connection: Connection) -> None:
        """A part of a head has arrived. Later parts do not extend the time."""
        self._idle.pop(connection, None)
        self._in_head.setdefault(connection, time.monotonic())

    def has_request(self, connection: Connection) -> None:
        """A head is complete."""
        self._idle.pop(connection, None)
        self._in_head.pop(connection, None)

    def is_idle(self, connection: Connection) -> None:
        """A response and its request are complete, and nothing of the next request has arrived."""
        if self._lingering:
            self._lingering.pop(connection, None)
        self._idle[connection] = time.monotonic()

    def lingers(self, connection: Connection) -> None:
        """The last response is complete, and the client may still send."""
        self._forget(connection)
        self._lingering[connection] = time.monotonic()

    def _forget(self, connection: Connection) -> None:
        for table in (self._lingering, self._in_head, self._idle):
            table.pop(connection, None)

    async def watch(self) -> None:
        """Ends the connections whose time is over. Runs until cancelled."""
        shortest_s = min(self._limits.head_timeout_s, self._limits.linger_s)
        while True:
            await asyncio.sleep(min(shortest_s / _CHECKS_PER_TIMEOUT, _MAX_CHECK_INTERVAL_S))
            while expired := self._expired(self._in_head, self._limits.head_timeout_s):
                for connection in expired:
                    connection.on_head_timeout()
                await asyncio.sleep(0)
            while expired := self._expired(self._lingering, self._limits.linger_s):
                for connection in expired:
                    connection.drop()
                await asyncio.sleep(0)

    @staticmethod
    def _expired(table: dict[Connection, float], limit_s: float) -> list[Connection]:
        """Takes some of the connections out of a table that have been there for too long."""
        last_s = time.monotonic() - limit_s
        expired = [connection for connection, since_s in islice(table.items(), _EXPIRED_AT_ONCE) if since_s <= last_s]
        for connection in expired:
            del table[connection]
        return expired
