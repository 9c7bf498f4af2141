"""Readiness of one model: it has passed a warm-up probe, and Triton is still reachable."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable

import structlog

from frontend.backends.generator import Generator
from frontend.backends.warm_up import WarmUpOutcome, WarmUpProbe, WarmUpTimeouts
from llm_pipeline.protocol.errors import ErrorCode, PipelineError

log = structlog.get_logger(__name__)


class Readiness:
    """Checks the engine every `check_interval_s` seconds in the background, with a probe after `idle_probe_interval_s`
    seconds without a chunk.

    While the generator's stages do not answer, or its engine makes no steps, the model is not ready. It becomes ready
    again by passing a probe.

    A Triton that hangs closes no connection: after `unresponsive_timeout_s` without a response from it, and repeatedly
    from then on, `on_unresponsive` is called, to end the requests that wait for it.
    """

    def __init__(
        self,
        generator: Generator,
        *,
        model: str = "",
        check_interval_s: float,
        idle_probe_interval_s: float,
        unresponsive_timeout_s: float = math.inf,
        on_unresponsive: Callable[[], None] = lambda: None,
        warm_up_timeouts: WarmUpTimeouts | None = None,
    ) -> None:
        self.is_ready = False
        self.last_chunk_s = 0.0  # monotonic; while requests get chunks, no probe is needed
        self._generator = generator
        self._model = model  # for the log
        self._check_interval_s = check_interval_s
        self._idle_probe_interval_s = idle_probe_interval_s
        self._unresponsive_timeout_s = unresponsive_timeout_s
        self._on_unresponsive = on_unresponsive
        self._probe = WarmUpProbe(generator, warm_up_timeouts)
        self._is_probe_requested = False
        self._wake = asyncio.Event()
        self._last_response_s = time.monotonic()

    def require(self) -> None:
        """Raises PipelineError (503) while completions are not accepted."""
        if not self.is_ready:
            raise PipelineError(
                ErrorCode.ENGINE_UNAVAILABLE,
                "The model is not ready. Retry after the delay in the Retry-After header.",
            )

    def request_probe(self) -> None:
        """Runs a warm-up probe as soon as possible: the engine has failed a request."""
        self._is_probe_requested = True
        self._wake.set()

    async def watch(self) -> None:
        """Keeps `is_ready` current. Runs until cancelled."""
        while True:
            is_ready = await self._check()
            if is_ready != self.is_ready:
                self.is_ready = is_ready
                log.info("ready" if is_ready else "not_ready", model=self._model)
            last_response_s = max(self._last_response_s, self.last_chunk_s)
            if time.monotonic() - last_response_s > self._unresponsive_timeout_s:
                self._on_unresponsive()
            await self._pause()

    async def _check(self) -> bool:
        if not await self._poll_ready() or not self._generator.is_progressing:
            return False
        if self.is_ready and not self._is_probe_requested and not self._is_idle():
            return True
        self._is_probe_requested = False
        return await self._passes_probe()

    def _is_idle(self) -> bool:
        return time.monotonic() - self.last_chunk_s > self._idle_probe_interval_s

    async def _poll_ready(self) -> bool:
        is_ready = await self._generator.is_ready()
        if is_ready:
            self._last_response_s = time.monotonic()
        return is_ready

    async def _pause(self) -> None:
        # A timer instead of wait_for, which before Python 3.12 may swallow the cancellation that ends `watch`.
        self._wake.clear()
        timer = asyncio.get_running_loop().call_later(self._check_interval_s, self._wake.set)
        try:
            await self._wake.wait()
        finally:
            timer.cancel()

    async def _passes_probe(self) -> bool:
        result = await self._probe.run(self._poll_ready)
        if result.is_passed:
            self.last_chunk_s = time.monotonic()
            return True
        log.warning("warm_up_failed", model=self._model, reason=result.reason)
        # After a timeout, chunks for other requests show that the engine is busy rather than broken.
        return result.outcome is WarmUpOutcome.TIMED_OUT and self.is_ready and not self._is_idle()
