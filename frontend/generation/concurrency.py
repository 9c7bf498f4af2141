"""Limits the choices in flight, of the whole server or of one model, and estimates when a slot will be free."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from frontend.multiprocess.shared_state import SharedState
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.runtime.retry_after import RetryAfterEstimator


class ConcurrencyLimit:
    """A limit on choices in flight: from their start until the engine has finished their work.

    `in_flight` and `queued` count this worker's choices; the limit applies to the choices of all workers that use the
    same `counter`. A limit of None is unlimited. `scope_label` names what the limit applies to in error messages.
    """

    def __init__(
        self,
        limit: int | None,
        workers: SharedState,
        counter: str,
        *,
        scope_label: str,
        create_estimator: Callable[[], RetryAfterEstimator] = RetryAfterEstimator,
    ) -> None:
        self.in_flight = 0
        self.queued = 0  # in flight, without a token yet
        self._limit = limit
        self._workers = workers
        self._total_in_flight = workers.counter(counter)
        self._scope_label = scope_label
        self._estimator = create_estimator()
        self._is_idle = asyncio.Event()
        self._is_idle.set()

    def acquire(self, count: int) -> Slots:
        """Acquires slots for the choices of one request. Raises PipelineError (429) if not all of them are free."""
        return acquire_slots([self], count)

    async def wait_until_idle(self, timeout_s: float) -> None:
        """Returns when no choice of this worker is in flight, or after the timeout."""
        await wait_for_event(self._is_idle, timeout_s)

    def _take(self, count: int) -> None:
        missing = 0
        with self._workers.lock():
            if self._limit is not None:
                missing = self._total_in_flight.total + count - self._limit
            if missing <= 0:
                self._total_in_flight.add(count)
        if missing > 0:
            raise PipelineError(
                ErrorCode.QUEUE_FULL,
                f"{self._scope_label} is at its limit of {self._limit} concurrent completions. "
                "Retry after the delay in the Retry-After header.",
                # Assumes that the load is spread evenly, so that all workers finish choices at the rate of this one.
                retry_after_s=self._estimator.estimate_s(-(-missing // self._workers.count)),
            )
        self._estimator.set_busy(True)
        self._is_idle.clear()
        self.in_flight += count
        self.queued += count

    def _first_token(self) -> None:
        self.queued -= 1

    def _free(self, count: int, *, queued: int) -> None:
        self.queued -= queued
        self.in_flight -= count
        self._total_in_flight.add(-count)
        if self.in_flight == 0:
            self._estimator.set_busy(False)
            self._is_idle.set()

    def _release(self, *, had_token: bool) -> None:
        self._estimator.completed()
        self._free(1, queued=0 if had_token else 1)


class Slots:
    """The slots of one request's choices, in each limit that applies to it. Each choice releases its own slot once."""

    def __init__(self, limits: Sequence[ConcurrencyLimit]) -> None:
        self._limits = limits

    def first_token(self) -> None:
        """A choice has its first token, so it is no longer queued."""
        for limit in self._limits:
            limit._first_token()

    def release(self, *, had_token: bool) -> None:
        """The engine has finished its work for one choice."""
        for limit in self._limits:
            limit._release(had_token=had_token)


def acquire_slots(limits: Sequence[ConcurrencyLimit], count: int) -> Slots:
    """Acquires `count` slots of every limit, or none. Raises PipelineError (429) for the first limit without room."""
    acquired: list[ConcurrencyLimit] = []
    try:
        for limit in limits:
            limit._take(count)
            acquired.append(limit)
    except PipelineError:
        for limit in acquired:
            limit._free(count, queued=count)
        raise
    return Slots(limits)


async def wait_for_event(event: asyncio.Event, timeout_s: float) -> None:
    """Returns when the event is set, or after the timeout."""
    try:
        await asyncio.wait_for(event.wait(), timeout_s)
    except asyncio.TimeoutError:
        return
