"""Admits requests up to the server's concurrency limit, and none while draining."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

from frontend.backends.generator import Generator
from frontend.generation.completion_run import CancelReason, CompletionRun
from frontend.generation.concurrency import ConcurrencyLimit, Slots, acquire_slots, wait_for_event
from frontend.multiprocess.shared_state import SharedState
from llm_pipeline.protocol.errors import ErrorCode, PipelineError

_CONFIRM_TIMEOUT_S = 2.0  # for the engine to confirm the end of cancelled requests


class Admission:
    """The server's concurrency limit, which all workers share, and the runs whose response is not complete."""

    def __init__(self, max_in_flight: int, workers: SharedState | None = None) -> None:
        self.is_draining = False
        self.limit = ConcurrencyLimit(
            max_in_flight, workers or SharedState.single_process(), "in_flight", scope_label="This server"
        )
        self._runs: set[CompletionRun] = set()
        self._has_responded = asyncio.Event()  # no response is incomplete
        self._has_responded.set()

    @property
    def in_flight(self) -> int:
        """Choices of this worker that the engine still works for."""
        return self.limit.in_flight

    @property
    def runs(self) -> Collection[CompletionRun]:
        """The runs whose response is not complete."""
        return self._runs

    def require_open(self) -> None:
        """Raises PipelineError (503) while draining."""
        if self.is_draining:
            raise PipelineError(
                ErrorCode.DRAINING, "This server is shutting down. Retry the request.", retry_after_s=1.0
            )

    def acquire(self, count: int, model_limit: ConcurrencyLimit) -> Slots:
        """Acquires a slot of the model and of the server for each choice, or none. Raises PipelineError (429)."""
        return acquire_slots([model_limit, self.limit], count)

    def add(self, run: CompletionRun) -> None:
        """The response to this run begins."""
        self._runs.add(run)
        self._has_responded.clear()

    def remove(self, run: CompletionRun) -> None:
        """The response to this run is complete."""
        self._runs.discard(run)
        if not self._runs:
            self._has_responded.set()

    async def wait_until_idle(self) -> None:
        """Returns when the engine has finished all its work, or when it takes too long to confirm cancellations."""
        await self.limit.wait_until_idle(_CONFIRM_TIMEOUT_S)

    def fail_all(self, error: PipelineError, reason: CancelReason, generator: Generator | None = None) -> None:
        """Ends every incomplete response with an error, or only those of one generator."""
        for run in list(self._runs):
            if generator is None or run.generator is generator:
                run.fail(error, reason)

    def fail_requests(self, keys: Collection[str], error: PipelineError, reason: CancelReason) -> None:
        """Ends every response with an error that still waits for one of these requests."""
        for run in list(self._runs):
            if any(choice.parameters.request_key in keys and choice.finish_reason is None for choice in run.choices):
                run.fail(error, reason)

    def fail_unresponsive(self, generator: Generator) -> None:
        """Ends every response that waits for a model server which no longer responds, with PipelineError (503)."""
        self.fail_all(_unresponsive(), CancelReason.TRITON_LOST, generator)

    def fail_lost(self, keys: Collection[str]) -> None:
        """Ends every response that waits for one of these requests, whose endpoint no longer responds (503)."""
        self.fail_requests(keys, _unresponsive(), CancelReason.TRITON_LOST)

    async def drain(self, timeout_s: float) -> None:
        """Admits nothing more, waits for incomplete responses, and after the timeout ends them with an error (503)."""
        self.is_draining = True
        await wait_for_event(self._has_responded, timeout_s)
        message = "The server shut down before this request was complete. Retry the request."
        self.fail_all(PipelineError(ErrorCode.DRAINING, message), CancelReason.DRAIN)


def _unresponsive() -> PipelineError:
    message = "The model server has stopped responding. Retry the request."
    return PipelineError(ErrorCode.SERVICE_UNAVAILABLE, message)
