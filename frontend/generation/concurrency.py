"""Limits the choices in flight, of the server, of one model or of one API key, and estimates when one will be free."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from frontend.generation.token_budget import ReservedTokens
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
        code: ErrorCode = ErrorCode.QUEUE_FULL,
        create_estimator: Callable[[], RetryAfterEstimator] = RetryAfterEstimator,
    ) -> None:
        self.in_flight = 0
        self.queued = 0  # in flight, without a token yet
        self.counter = counter
        self.scope_label = scope_label
        self._limit = limit
        self._workers = workers
        self._total_in_flight = workers.counter(counter)
        self._code = code
        self._estimator = create_estimator()
        self._is_idle = asyncio.Event()
        self._is_idle.set()

    @property
    def limit(self) -> int | None:
        """Maximum of choices in flight; None if it is unlimited."""
        return self._limit

    @property
    def total_in_flight(self) -> int:
        """The choices in flight of all workers."""
        return self._total_in_flight.total

    def acquire(self, count: int) -> Slots:
        """Acquires slots for the choices of one request. Raises PipelineError (429) if not all of them are free."""
        return acquire_slots([self], count)

    async def wait_until_idle(self, timeout_s: float) -> None:
        """Returns when no choice of this worker is in flight, or after the timeout."""
        await wait_for_event(self._is_idle, timeout_s)

    def _refusal(self, count: int) -> PipelineError | None:
        """The error (429) for `count` more choices; None if there is room. The caller holds the workers' lock."""
        if self._limit is None:
            return None
        missing = self.total_in_flight + count - self._limit
        if missing <= 0:
            return None
        return self._error(f"{self.scope_label} is at its limit of {self._limit} concurrent completions.", missing)

    def _error(self, cause: str, missing: int) -> PipelineError:
        return PipelineError(
            self._code,
            f"{cause} Retry after the delay in the Retry-After header.",
            # Assumes that the load is spread evenly, so that all workers finish choices at the rate of this one.
            retry_after_s=self._estimator.estimate_s(-(-missing // self._workers.count)),
        )

    def _take(self, count: int) -> None:
        self._total_in_flight.add(count)
        self._estimator.set_busy(True)
        self._is_idle.clear()
        self.in_flight += count
        self.queued += count

    def _first_token(self) -> None:
        self.queued -= 1

    def _release(self, *, had_token: bool) -> None:
        self._estimator.completed()
        if not had_token:
            self.queued -= 1
        self.in_flight -= 1
        self._total_in_flight.add(-1)
        if self.in_flight == 0:
            self._estimator.set_busy(False)
            self._is_idle.set()


class Slots:
    """The slots of one request's choices, in each limit that applies to it. Each choice releases its own slot once."""

    def __init__(self, limits: Sequence[ConcurrencyLimit], tokens: ReservedTokens | None) -> None:
        self._limits = limits
        self._tokens = tokens

    def first_token(self) -> None:
        """A choice has its first token, so it is no longer queued."""
        for limit in self._limits:
            limit._first_token()

    def release(self, *, had_token: bool, choice: int = 0) -> None:
        """The engine has finished its work for one choice, which `choice` is the index of."""
        for limit in self._limits:
            limit._release(had_token=had_token)
        if self._tokens is not None:
            self._tokens.release(choice)


def acquire_slots(limits: Sequence[ConcurrencyLimit], count: int, tokens: ReservedTokens | None = None) -> Slots:
    """Acquires `count` slots of every limit, and the tokens, or nothing at all.

    Limits of one request share their workers. Raises PipelineError (429) for the first limit without room.
    """
    with limits[0]._workers.lock():
        refusals = (limit._refusal(count) for limit in limits)
        refusal = next((found for found in refusals if found is not None), None)
        if refusal is None and tokens is not None:
            refusal = tokens.refusal()
        if refusal is None:
            for limit in limits:
                limit._take(count)
            if tokens is not None:
                tokens.take()
    if refusal is not None:
        raise refusal
    return Slots(limits, tokens)


async def wait_for_event(event: asyncio.Event, timeout_s: float) -> None:
    """Returns when the event is set, or after the timeout."""
    try:
        await asyncio.wait_for(event.wait(), timeout_s)
    except asyncio.TimeoutError:
        return
