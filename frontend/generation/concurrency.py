"""Places for choices in flight, of the whole server or of one model: how many are taken, and how soon one is free."""

from __future__ import annotations

from frontend.multiprocess.shared_state import SharedState
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.runtime.retry_after import RetryAfterEstimator


class ConcurrencyLimit:
    """Choices from their start to the moment when the engine is done with them.

    `in_flight` and `queued` are those of this worker; the limit holds for what all workers have in flight under the
    same counter. None is no limit. `owner` says in a refusal whose places they are.
    """

    def __init__(self, limit: int | None, workers: SharedState, counter: str, *, owner: str = "") -> None:
        self.in_flight = 0
        self.queued = 0  # in flight, but without a token yet
        self._limit = limit
        self._workers = workers
        self._in_flight_of_all = workers.counter(counter)
        self._owner = owner
        self._drain_rate = RetryAfterEstimator()

    def admit(self, choices: int) -> None:
        """Counts the choices of a new request; PipelineError (429) when there is no room for all of them."""
        missing = 0
        with self._workers.lock():
            if self._limit is not None:
                missing = self._in_flight_of_all.total + choices - self._limit
            if missing <= 0:
                self._in_flight_of_all.add(choices)
        if missing > 0:
            raise PipelineError(
                ErrorCode.QUEUE_FULL,
                f"All {self._limit} places{self._owner} are taken; try again as Retry-After says.",
                # All workers keep our pace, if the load is spread evenly.
                retry_after_s=self._drain_rate.estimate_s(-(-missing // self._workers.count)),
            )
        self._drain_rate.set_busy(True)
        self.in_flight += choices
        self.queued += choices

    def withdraw(self, choices: int) -> None:
        """Choices that were admitted, and will not be sent to the engine after all."""
        self.queued -= choices
        self._leave(choices)

    def choice_ended(self, *, had_token: bool) -> None:
        """The engine is done with one choice."""
        self.queued -= not had_token
        self._drain_rate.completed()
        self._leave(1)

    def _leave(self, choices: int) -> None:
        self.in_flight -= choices
        self._in_flight_of_all.add(-choices)
        if self.in_flight == 0:
            self._drain_rate.set_busy(False)
