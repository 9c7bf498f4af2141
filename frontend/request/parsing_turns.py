"""Takes turns at parsing large bodies, so that the event loop serves everything else between two pieces of that work.

Parsing holds the interpreter's lock wherever it runs, so a thread would not help, and a helper process would spend
half as long again on receiving the result (17 ms for 700,000 token ids, measured).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class ParsingTurns:
    """One body at a time; those of different holders (API keys) alternate. Belongs to one event loop."""

    def __init__(self) -> None:
        self._is_taken = False
        self._waiting: dict[str | None, deque[asyncio.Future[None]]] = {}  # the next holder first

    @asynccontextmanager
    async def turn(self, holder: str | None) -> AsyncIterator[None]:
        """Waits for a turn, which lasts to the end of the `with` statement."""
        if self._is_taken:
            await self._wait(holder)
        self._is_taken = True
        try:
            yield
        finally:
            self._next()

    async def _wait(self, holder: str | None) -> None:
        future = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(holder, deque()).append(future)
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():  # its turn had come
                self._next()
            raise

    def _next(self) -> None:
        """Gives the turn to the next holder that waits. It stays taken until that one's task runs."""
        while self._waiting:
            holder, futures = next(iter(self._waiting.items()))
            del self._waiting[holder]
            future = futures.popleft()
            if futures:
                self._waiting[holder] = futures  # behind all other holders
            if not future.done():
                future.set_result(None)
                return
        self._is_taken = False
