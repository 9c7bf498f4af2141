"""Caches the engine's model info and refreshes it in the background, so that requests rarely wait for the engine."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from frontend.backends.generator import Generator
from frontend.models.chat_template_file import with_chat_template
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.protocol.model_info import ModelInfo

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class InfoCacheTimeouts:
    """Times in seconds."""

    ttl_s: float = 30.0  # the model info of an engine changes only with a restart
    retry_s: float = 2.0  # after a failure that may pass
    read_timeout_s: float = 1.0  # for which `read` waits for a refresh
    refresh_timeout_s: float = 30.0  # until a refresh without a response is followed by another


class ModelInfoCache:
    """The model info of one model's engine. `model` names it in the log; `clock` returns monotonic seconds.

    `chat_template` is the deployment's, which replaces the engine's; `chat` of the info is None without a template.
    """

    def __init__(
        self,
        generator: Generator,
        model: str = "",
        *,
        chat_template: str | None = None,
        timeouts: InfoCacheTimeouts | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._generator = generator
        self._model = model
        self._chat_template = chat_template
        self._timeouts = timeouts or InfoCacheTimeouts()
        self._clock = clock
        self._info: ModelInfo | None = None
        self._refresh_at_s = 0.0
        self._refresh_task: asyncio.Task[None] | None = None
        self._pending: set[asyncio.Task[None]] = set()

    async def read(self) -> ModelInfo | None:
        """Returns the latest model info, or None if the engine has never returned any. Takes at most a second."""
        if self._clock() >= self._refresh_at_s:
            self._start_refresh()
        if self._refresh_task is not None:
            # Not cancelled if it takes longer: the next reader may get its result.
            await asyncio.wait({self._refresh_task}, timeout=self._timeouts.read_timeout_s)
        return self._info

    def _start_refresh(self) -> None:
        """Does not cancel a pending refresh: that would cancel its call to Triton (see Generator)."""
        self._refresh_at_s = self._clock() + self._timeouts.refresh_timeout_s
        self._refresh_task = task = asyncio.create_task(self._refresh())
        self._pending.add(task)
        task.add_done_callback(self._refresh_ended)

    def _refresh_ended(self, task: asyncio.Task[None]) -> None:
        self._pending.discard(task)
        if self._refresh_task is task:
            self._refresh_task = None

    async def _refresh(self) -> None:
        try:
            self._info = with_chat_template(await self._generator.get_model_info(), self._chat_template)
            valid_s = self._timeouts.ttl_s
        except PipelineError as error:
            log.info("model_info_unavailable", model=self._model, reason=error.code.value)
            is_permanent = error.code is ErrorCode.UNSUPPORTED_PARAMETER  # this backend has no model info
            valid_s = math.inf if is_permanent else self._timeouts.retry_s
        self._refresh_at_s = self._clock() + valid_s
