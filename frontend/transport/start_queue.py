"""Spreads the start of many requests over iterations of the event loop, so that running streams have their turn."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import ParamSpec

P = ParamSpec("P")

MAX_STARTS = 32
"""Requests that start in one iteration, in which those of the iterations before it go on: 15 ms of work together."""


class StartQueue:
    """Starts requests in the order of their arrival, and at once unless many arrive in the same moment."""

    def __init__(self) -> None:
        self._starts = 0  # in this iteration
        self._waiting: deque[Callable[[], None]] = deque()

    def start(self, run: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
        """Calls `run` now or in one of the next iterations."""
        if self._starts >= MAX_STARTS:
            self._waiting.append(partial(run, *args, **kwargs))
            return
        if not self._starts:
            asyncio.get_running_loop().call_soon(self._next_iteration)
        self._starts += 1
        run(*args, **kwargs)

    def _next_iteration(self) -> None:
        self._starts = 0
        for _ in range(min(MAX_STARTS, len(self._waiting))):
            self.start(self._waiting.popleft())
