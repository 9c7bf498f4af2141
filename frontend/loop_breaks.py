"""Pauses in long work on the event loop, so that it never waits for all of it."""

from __future__ import annotations

import asyncio
import time

_MAX_HOLD_S = 0.002


class LoopBreaks:
    """The pauses of one piece of work, which calls `pause` wherever it can stop."""

    def __init__(self) -> None:
        self._since_s = time.monotonic()

    async def pause(self) -> None:
        """Leaves the event loop to others for as long as the work has held it, unless that was hardly any time."""
        held_s = time.monotonic() - self._since_s
        if held_s > _MAX_HOLD_S:
            await asyncio.sleep(held_s)
            self._since_s = time.monotonic()
