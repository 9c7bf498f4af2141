"""How much work is let in: choices in flight, and nothing while draining. The limit is that of all workers together."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

from frontend.backends.generator import Generator
from frontend.generation.completion_run import CancelReason, CompletionRun
from frontend.generation.concurrency import ConcurrencyLimit
from frontend.multiprocess.shared_state import SharedState
from llm_pipeline.protocol.errors import ErrorCode, PipelineError

_LAST_ENDS_S = 2.0  # for the engine to confirm what was stopped


class Admission(ConcurrencyLimit):
    """The server's places, and the answers that are under way."""

    def __init__(self, max_in_flight: int, workers: SharedState | None = None) -> None:
        super().__init__(max_in_flight, workers or SharedState.single_process(), "in_flight")
        self.is_draining = False
        self._runs: set[CompletionRun] = set()  # whose answer is not finished yet
        self._is_answered = _set_event()
        self._is_idle = _set_event()

    def require_open(self) -> None:
        """PipelineError (503) while draining."""
        if self.is_draining:
            raise PipelineError(
                ErrorCode.DRAINING, "This server is shutting down; send the request again.", retry_after_s=1.0
            )

    def admit(self, choices: int) -> None:
        """See Places."""
        super().admit(choices)
        self._is_idle.clear()

    def choice_ended(self, *, had_token: bool) -> None:
        """See Places."""
        super().choice_ended(had_token=had_token)
        if self.in_flight == 0:
            self._is_idle.set()

    def opened(self, run: CompletionRun) -> None:
        """An answer is under way."""
        self._runs.add(run)
        self._is_answered.clear()

    def closed(self, run: CompletionRun) -> None:
        """An answer is over."""
        self._runs.discard(run)
        if not self._runs:
            self._is_answered.set()

    async def wait_until_idle(self) -> None:
        """Returns when the engine is done with everything, or when it takes too long to confirm."""
        await _wait(self._is_idle, _LAST_ENDS_S)

    def fail_all(self, error: PipelineError, reason: CancelReason, generator: Generator | None = None) -> None:
        """End every answer that is under way with an error; with a generator, those that it works for."""
        for run in list(self._runs):
            if generator is None or run.generator is generator:
                run.fail(error, reason)

    def fail_requests(self, keys: Collection[str], error: PipelineError, reason: CancelReason) -> None:
        """End every answer with an error that still waits for one of these requests."""
        for run in list(self._runs):
            if any(each.parameters.request_key in keys and each.finish_reason is None for each in run.choices):
                run.fail(error, reason)

    async def drain(self, timeout_s: float) -> None:
        """Let nothing new in, wait for answers that are under way, and stop them when the time is over."""
        self.is_draining = True
        await _wait(self._is_answered, timeout_s)
        message = "The server shut down before this request was finished; send it again."
        self.fail_all(PipelineError(ErrorCode.DRAINING, message), CancelReason.DRAIN)


def _set_event() -> asyncio.Event:
    event = asyncio.Event()
    event.set()
    return event


async def _wait(event: asyncio.Event, timeout_s: float) -> None:
    try:
        await asyncio.wait_for(event.wait(), timeout_s)
    except asyncio.TimeoutError:
        return
