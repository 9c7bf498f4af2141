"""Admits requests up to the server's concurrency limit, and none while draining."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence

import structlog

from frontend.api_key import ApiKey
from frontend.backends.generator import Generator
from frontend.generation.completion_run import CancelReason, CompletionRun
from frontend.generation.concurrency import ConcurrencyLimit, Slots, acquire_slots, wait_for_event
from frontend.generation.key_limits import KeyLimit
from frontend.generation.token_budget import ReservedTokens
from frontend.keys.store import revoked_error
from frontend.multiprocess.shared_state import SharedState
from llm_pipeline.protocol.errors import ErrorCode, PipelineError

log = structlog.get_logger(__name__)

_CONFIRM_TIMEOUT_S = 2.0  # for the engine to confirm the end of cancelled requests


class Admission:
    """The server's concurrency limit, which all workers share, and the runs whose response is not complete."""

    def __init__(self, max_in_flight: int, workers: SharedState | None = None) -> None:
        self.is_draining = False
        self.limit = ConcurrencyLimit(
            max_in_flight, workers or SharedState.single_process(), "in_flight", scope_label="This server"
        )
        self._runs: dict[CompletionRun, ApiKey | None] = {}
        self._has_responded = asyncio.Event()  # no response is incomplete
        self._has_responded.set()

    @property
    def in_flight(self) -> int:
        """Choices of this worker that the engine still works for."""
        return self.limit.in_flight

    @property
    def runs(self) -> Collection[CompletionRun]:
        """The runs whose response is not complete."""
        return self._runs.keys()

    def require_open(self) -> None:
        """Raises PipelineError (503) while draining."""
        if self.is_draining:
            raise PipelineError(ErrorCode.DRAINING, "This server is shutting down. Retry the request.")

    def acquire(
        self,
        count: int,
        model_limit: ConcurrencyLimit,
        key_limits: Sequence[KeyLimit] = (),
        tokens: ReservedTokens | None = None,
    ) -> Slots:
        """Acquires a slot of the key, the model and the server for each choice, and the key's tokens, or nothing.

        Raises PipelineError (429).
        """
        return acquire_slots([*key_limits, model_limit, self.limit], count, tokens)

    def add(self, run: CompletionRun, key: ApiKey | None = None) -> None:
        """The response to this run of a client with this key begins."""
        self._runs[run] = key
        self._has_responded.clear()

    def remove(self, run: CompletionRun) -> None:
        """The response to this run is complete."""
        self._runs.pop(run, None)
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

    def fail_revoked(self, is_valid: Callable[[ApiKey], bool]) -> None:
        """Ends every response whose API key is no longer valid, with PipelineError (401)."""
        revoked = [(run, key) for run, key in self._runs.items() if key is not None and not is_valid(key)]
        for run, key in revoked:
            if run.failure is None:
                log.info("request_of_revoked_key_ended", key=key.name)
            run.fail(revoked_error(), CancelReason.KEY_REVOKED)

    async def drain(self, timeout_s: float) -> None:
        """Admits nothing more, waits for incomplete responses, and after the timeout ends them with an error (503)."""
        self.is_draining = True
        await wait_for_event(self._has_responded, timeout_s)
        message = "The server shut down before this request was complete. Retry the request."
        self.fail_all(PipelineError(ErrorCode.DRAINING, message), CancelReason.DRAIN)


def _unresponsive() -> PipelineError:
    message = "The model server has stopped responding. Retry the request."
    return PipelineError(ErrorCode.SERVICE_UNAVAILABLE, message)
