"""What a model's engine says of itself, asked now and then, so that nobody waits for an answer."""

from __future__ import annotations

import asyncio
import time

import structlog

from frontend.generator import Generator
from llm_pipeline.description import ModelDescription
from llm_pipeline.errors import PipelineError

log = structlog.get_logger(__name__)

_FRESH_S = 30.0  # an engine changes with a restart only
_ANSWER_LIMIT_S = 1.0


class EngineFacts:
    """The description that one model's engine gives of itself, None while nobody could tell."""

    def __init__(self, generator: Generator) -> None:
        self._generator = generator
        self._known: ModelDescription | None = None
        self._asked_s = -_FRESH_S  # monotonic
        self._question: asyncio.Task[None] | None = None

    async def read(self) -> ModelDescription | None:
        """The newest that is known; takes a second at most."""
        is_old = self._known is None or time.monotonic() - self._asked_s >= _FRESH_S
        if is_old and self._question is None:
            self._question = asyncio.create_task(self._ask())
        if self._question is not None:
            # Not cancelled when it takes longer: whoever asks next may find the answer.
            await asyncio.wait({self._question}, timeout=_ANSWER_LIMIT_S)
        return self._known

    async def _ask(self) -> None:
        try:
            self._known = await self._generator.describe()
        except PipelineError as error:
            log.info("model_not_described", reason=error.code.value)
        finally:
            self._asked_s = time.monotonic()
            self._question = None
