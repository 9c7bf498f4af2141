"""A store that others share, with what happens while it does not answer: LIMITS_ON_FAILURE."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from frontend.limits.port import Admission, Demand, LimitStore, StoreUnavailableError
from frontend.limits.window import WindowState

log = structlog.get_logger(__name__)

_PAUSE_S = 1.0  # after a failure, in which the store is not asked, so that not every request waits for a timeout
Answer = TypeVar("Answer")


class FailoverStore:
    """Asks the shared store, and while it fails `own`, the counts of this front end; without `own`, it raises."""

    def __init__(
        self,
        shared: LimitStore,
        own: LimitStore | None,
        *,
        on_failure: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._shared = shared
        self._own = own
        self._on_failure = on_failure
        self._clock = clock
        self._paused_until_s = 0.0
        self._has_failed = False

    async def count_request(self, key: str, limit: int) -> WindowState:
        """Counts a request."""
        return await self._first_answer(lambda store: store.count_request(key, limit))

    async def reserve(self, demand: Demand) -> Admission:
        """Reserves what a request demands."""
        return await self._first_answer(lambda store: store.reserve(demand))

    async def close(self) -> None:
        """Closes both."""
        await self._shared.close()

    async def _first_answer(self, ask: Callable[[LimitStore], Awaitable[Answer]]) -> Answer:
        try:
            return await self._ask_shared(ask)
        except StoreUnavailableError:
            self._on_failure()
            if self._own is None:
                raise
        return await ask(self._own)

    async def _ask_shared(self, ask: Callable[[LimitStore], Awaitable[Answer]]) -> Answer:
        if self._clock() < self._paused_until_s:
            raise StoreUnavailableError("paused after a failure")
        try:
            answer = await ask(self._shared)
        except StoreUnavailableError as error:
            self._paused_until_s = self._clock() + _PAUSE_S
            if not self._has_failed:
                self._has_failed = True
                log.error("limits_store_unavailable", reason=str(error), admits=self._own is not None)
            raise
        if self._has_failed:
            self._has_failed = False
            log.info("limits_store_available")
        return answer
