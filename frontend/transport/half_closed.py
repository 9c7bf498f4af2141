"""Tells clients that have closed only their own direction, and wait for the response, from those that are gone.

Both look the same until something is written: a host that has closed its socket answers with a reset. So before the
response starts, the interim response `100 Continue` is written a few times. HTTP/1.1 clients have to skip it, also if
they did not ask for it (RFC 9110, section 15.2), and the write after the reset ends the connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_DELAYS_S = (0.02, 0.05, 0.1, 0.3, 1.0)  # the reset takes a round trip


class Probe:
    """Writes interim responses on one connection. `is_over`: the response has started, or the connection is closed."""

    def __init__(self, transport: asyncio.Transport, is_over: Callable[[], bool]) -> None:
        self._transport = transport
        self._is_over = is_over
        self._delays_s = iter(_DELAYS_S)

    def write(self) -> None:
        """Writes now, and again after a while."""
        if self._is_over():
            return
        self._transport.write(_CONTINUE)
        delay_s = next(self._delays_s, None)
        if delay_s is not None:
            asyncio.get_running_loop().call_later(delay_s, self.write)


def probe(transport: asyncio.Transport, cycle: Any) -> None:
    """Starts to probe for the client of uvicorn's `cycle`."""
    Probe(transport, lambda: cycle.response_started or transport.is_closing()).write()
