"""Warm-up probe: a short prompt that shows whether an engine completes requests.

"Loaded" is not enough: a server can be up and ready and complete every prompt with nothing (triton server#7724, #7868).
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import Enum

import structlog

from frontend.backends.background_tasks import BackgroundTasks
from frontend.backends.cancellation import CancelTimeouts, abandon_later, cancel_until_done
from frontend.backends.generator import Generator
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.protocol.messages import CompletionParameters, FinishReason, TextChunk

log = structlog.get_logger(__name__)

_PROMPT = "The capital of France is"
_MAX_TOKENS = 4


@dataclass(frozen=True)
class WarmUpTimeouts:
    """Timeouts in seconds."""

    timeout_s: float = 60.0  # the first request to a cold engine compiles and allocates
    check_interval_s: float = 2.0  # between two checks that the endpoint is alive
    cancel: CancelTimeouts = field(default_factory=CancelTimeouts)


class WarmUpOutcome(Enum):
    """Outcome of a warm-up probe."""

    PASSED = "passed"
    FAILED = "failed"
    TIMED_OUT = "timed out"
    ENDPOINT_LOST = "endpoint lost"


@dataclass(frozen=True)
class WarmUpResult:
    """Outcome of a warm-up probe, with a reason for the log."""

    outcome: WarmUpOutcome
    reason: str

    @property
    def is_passed(self) -> bool:
        """Whether the engine completed the prompt with text."""
        return self.outcome is WarmUpOutcome.PASSED


@dataclass
class _Completion:
    parameters: CompletionParameters
    text: str = ""
    is_finished: bool = False
    error: ErrorCode | None = None

    @property
    def result(self) -> WarmUpResult:
        if self.error is not None:
            return WarmUpResult(WarmUpOutcome.FAILED, self.error.value)
        if not self.text:
            return WarmUpResult(WarmUpOutcome.FAILED, "empty text")
        return WarmUpResult(WarmUpOutcome.PASSED, "")


class WarmUpProbe:
    """Sends warm-up prompts to one generator.

    A probe is a request like any other: a task of its own drains its stream, also after a timeout and when `run` is
    cancelled.
    """

    def __init__(self, generator: Generator, timeouts: WarmUpTimeouts | None = None) -> None:
        self._generator = generator
        self._timeouts = timeouts or WarmUpTimeouts()
        self._tasks = BackgroundTasks()

    async def run(self, is_alive: Callable[[], Awaitable[bool]]) -> WarmUpResult:
        """Completes one prompt. Polls `is_alive` during that time and gives up when it returns False."""
        completion = _Completion(_parameters())
        stream_task = self._tasks.start(self._drain(completion))
        deadline_s = time.monotonic() + self._timeouts.timeout_s
        is_reachable = True
        while not stream_task.done() and is_reachable and time.monotonic() < deadline_s:
            await asyncio.wait({stream_task}, timeout=self._timeouts.check_interval_s)
            is_reachable = stream_task.done() or await is_alive()
        if stream_task.done():
            return completion.result
        self._tasks.start(cancel_until_done(self._generator, completion.parameters, stream_task, self._timeouts.cancel))
        if is_reachable:
            return WarmUpResult(WarmUpOutcome.TIMED_OUT, "no completion in time")
        return WarmUpResult(WarmUpOutcome.ENDPOINT_LOST, "Triton became unreachable")

    async def _drain(self, completion: _Completion) -> None:
        try:
            await self._read(completion)
        except PipelineError as error:
            completion.error = None if completion.is_finished else error.code
        except Exception:
            log.exception("generator_failed", request_id=completion.parameters.request_id)
            completion.error = None if completion.is_finished else ErrorCode.INTERNAL_ERROR

    async def _read(self, completion: _Completion) -> None:
        abandon_timer: asyncio.TimerHandle | None = None
        stream_task = asyncio.current_task()

        def receive(chunk: TextChunk) -> None:
            nonlocal abandon_timer
            if completion.is_finished:
                return
            completion.text += chunk.text
            if chunk.finish_reason not in (None, FinishReason.CANCELLED):
                completion.is_finished = True
                abandon_timer = abandon_later(stream_task, completion.parameters.request_id, self._timeouts.cancel)

        try:
            await self._generator.generate(completion.parameters, receive)
        finally:
            if abandon_timer is not None:
                abandon_timer.cancel()
        if not completion.is_finished:
            completion.error = ErrorCode.SERVICE_UNAVAILABLE


def _parameters() -> CompletionParameters:
    """A short prompt that any model completes with text."""
    key = uuid.uuid4().hex
    return CompletionParameters(
        request_key=key,
        request_id=f"warm-up-{key[:8]}",
        prompt_text=_PROMPT,
        max_tokens=_MAX_TOKENS,
        temperature=0.0,
    )
