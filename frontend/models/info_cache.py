"""What a model's engine says of itself, asked now and then, so that nobody waits for an answer."""

from __future__ import annotations

import asyncio
import math
import time

import structlog

from frontend.backends.generator import Generator
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.protocol.model_info import ModelInfo

log = structlog.get_logger(__name__)

_FRESH_S = 30.0  # an engine changes with a restart only
_RETRY_S = 2.0  # after a failure that may pass
_ANSWER_LIMIT_S = 1.0
_QUESTION_LIMIT_S = 30.0


class ModelInfoCache:
    """The description that one model's engine gives of itself, None while nobody could tell."""

    def __init__(self, generator: Generator, model: str = "") -> None:
        self._generator = generator
        self._model = model  # for the log
        self._known: ModelInfo | None = None
        self._ask_again_s = 0.0  # monotonic
        self._question: asyncio.Task[None] | None = None
        self._unanswered: set[asyncio.Task[None]] = set()

    async def read(self) -> ModelInfo | None:
        """The newest that is known; takes a second at most."""
        if time.monotonic() >= self._ask_again_s:
            self._ask()
        if self._question is not None:
            # Not cancelled when it takes longer: whoever asks next may find the answer.
            await asyncio.wait({self._question}, timeout=_ANSWER_LIMIT_S)
        return self._known

    def _ask(self) -> None:
        """A question without an answer by the time of the next one is left alone: to cancel it would cancel its call to
        Triton (see Generator).
        """
        self._ask_again_s = time.monotonic() + _QUESTION_LIMIT_S
        self._question = task = asyncio.create_task(self._describe())
        self._unanswered.add(task)
        task.add_done_callback(self._answered)

    def _answered(self, question: asyncio.Task[None]) -> None:
        self._unanswered.discard(question)
        if self._question is question:
            self._question = None

    async def _describe(self) -> None:
        try:
            self._known = await self._generator.get_model_info()
            pause_s = _FRESH_S
        except PipelineError as error:
            log.info("model_not_described", model=self._model, reason=error.code.value)
            is_final = error.code is ErrorCode.UNSUPPORTED_PARAMETER  # it has nothing to say of itself
            pause_s = math.inf if is_final else _RETRY_S
        self._ask_again_s = time.monotonic() + pause_s
