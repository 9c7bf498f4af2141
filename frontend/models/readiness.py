"""Whether completions are accepted: the model has answered a warm-up with text, and Triton is still there.

"Up" is not enough: a server can be up and loaded and answer every prompt with nothing (triton server#7724, #7868).
"""

from __future__ import annotations

import asyncio
import math
import time
import uuid
from collections.abc import Callable

import structlog

from frontend.backends.generator import Generator
from frontend.generation.completion_run import CancelReason, Choice, CompletionRun
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.protocol.messages import CompletionParameters, TextChunk

log = structlog.get_logger(__name__)

_WARM_UP_PROMPT = "The capital of France is"
_WARM_UP_TOKENS = 4
_WARM_UP_TIMEOUT_S = 60.0  # the first request to a cold engine compiles and allocates
_LOOK_DURING_WARM_UP_S = 2.0


class Readiness:
    """Looks at the engine all the time, in the background.

    A Triton that hangs closes no connection: `on_lost` is called when there was no sign of it for `lost_s`, and again
    as long as there is none, to end what waits for it.
    """

    def __init__(
        self,
        generator: Generator,
        *,
        model: str = "",
        check_s: float,
        idle_s: float,
        lost_s: float = math.inf,
        on_lost: Callable[[], None] = lambda: None,
    ) -> None:
        self.is_ready = False
        self.last_chunk_s = 0.0  # monotonic; traffic that gets answers needs no other proof of life
        self._generator = generator
        self._model = model  # for the log
        self._check_s = check_s
        self._idle_s = idle_s
        self._wake = asyncio.Event()
        self._is_doubted = False
        self._lost_s = lost_s
        self._on_lost = on_lost
        self._last_sign_s = time.monotonic()

    def require(self) -> None:
        """PipelineError (503) while completions are not accepted."""
        if not self.is_ready:
            raise PipelineError(
                ErrorCode.ENGINE_UNAVAILABLE, "The model is not ready yet; try again as Retry-After says."
            )

    def doubt(self) -> None:
        """The engine has failed a request: look at once, with a warm-up."""
        self._is_doubted = True
        self._wake.set()

    async def watch(self) -> None:
        """Runs until cancelled."""
        while True:
            is_ready = await self._look()
            if is_ready != self.is_ready:
                self.is_ready = is_ready
                log.info("ready" if is_ready else "not_ready", model=self._model)
            if time.monotonic() - max(self._last_sign_s, self.last_chunk_s) > self._lost_s:
                self._on_lost()
            await self._pause()

    async def _look(self) -> bool:
        if not await self._sees_triton():
            return False
        is_idle = time.monotonic() - self.last_chunk_s > self._idle_s
        if self.is_ready and not self._is_doubted and not is_idle:
            return True
        self._is_doubted = False
        return await self._warm_up()

    async def _sees_triton(self) -> bool:
        is_there = await self._generator.is_ready()
        if is_there:
            self._last_sign_s = time.monotonic()
        return is_there

    async def _pause(self) -> None:
        # A timer instead of wait_for, which before Python 3.12 may swallow the cancellation that ends `watch`.
        self._wake.clear()
        timer = asyncio.get_running_loop().call_later(self._check_s, self._wake.set)
        try:
            await self._wake.wait()
        finally:
            timer.cancel()

    async def _warm_up(self) -> bool:
        trial = WarmUpProbe()
        run = CompletionRun([Choice(0, 0, warm_up_parameters())], self._generator, trial)
        run.start()
        deadline_s = time.monotonic() + _WARM_UP_TIMEOUT_S
        is_there = True
        while not run.is_over and is_there and time.monotonic() < deadline_s:
            await run.wait_until_over(_LOOK_DURING_WARM_UP_S)
            is_there = run.is_over or await self._sees_triton()
        if not run.is_over:
            run.cancel(CancelReason.DEADLINE)
            reason = "no answer in time" if is_there else "Triton went away"
            log.warning("warm_up_failed", model=self._model, reason=reason)
            if not is_there:
                return False
            # Answers for others meanwhile: the engine is busy, not broken.
            return self.is_ready and time.monotonic() - self.last_chunk_s < self._idle_s
        if run.failure is not None or not trial.text:
            reason = run.failure.code.value if run.failure else "empty text"
            log.warning("warm_up_failed", model=self._model, reason=reason)
            return False
        self.last_chunk_s = time.monotonic()
        return True


def warm_up_parameters() -> CompletionParameters:
    """A short request that any model answers with text."""
    key = uuid.uuid4().hex
    return CompletionParameters(
        request_key=key,
        request_id=f"warm-up-{key[:8]}",
        prompt_text=_WARM_UP_PROMPT,
        max_tokens=_WARM_UP_TOKENS,
        temperature=0.0,
    )


class WarmUpProbe:
    """A RunListener that keeps the text."""

    def __init__(self) -> None:
        self.text = ""

    def on_chunk(self, choice: Choice, chunk: TextChunk) -> None:
        self.text += chunk.text

    def on_failure(self, error: PipelineError) -> None:
        pass

    def on_cancel(self, reason: CancelReason) -> None:
        pass

    def on_end(self, choice: Choice) -> None:
        pass
