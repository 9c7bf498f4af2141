"""The front end's view of whatever completes prompts: the Generator port, in terms of messages, not of Triton."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.protocol.messages import CompletionParameters, TextChunk
from llm_pipeline.protocol.model_info import ModelInfo


class UnreachableError(PipelineError):
    """The request has not reached an engine, so another one may be asked: nothing of it runs anywhere."""

    def __init__(self) -> None:
        message = "The model server cannot be reached at the moment; try again shortly."
        super().__init__(ErrorCode.SERVICE_UNAVAILABLE, message)


class NoRoomError(PipelineError):
    """Triton has no memory left for this request. It is well all the same, and may serve the next one."""

    def __init__(self) -> None:
        message = "The model server has no room for this request; try again shortly."
        super().__init__(ErrorCode.SERVICE_UNAVAILABLE, message)


class Generator(Protocol):
    """Completes prompts, many at once.

    Who iterates over `generate` goes on to the very end: past the finish reason, and past a `stop`. The end says that
    the engine is done with the request. Closing the iterator early, or cancelling a task that waits for it, is a last
    resort: it cancels the call to Triton, which this Triton version doesn't always survive (server PR 8078).
    """

    def generate(self, parameters: CompletionParameters) -> AsyncIterator[TextChunk]:
        """The chunks of one completion, as they are made. Raises PipelineError, UnreachableError before a chunk."""

    async def cancel(self, key: str) -> None:
        """Ask the engine to end the request with this key soon. PipelineError when the message can't be delivered."""

    async def get_model_info(self) -> ModelInfo:
        """Limits and capabilities of the model. PipelineError when the engine can't be asked."""

    async def is_ready(self) -> bool:
        """Whether the engine can be reached and has loaded the model; cheap, never raises, answers within seconds."""

    async def close(self) -> None:
        """Let go of all connections."""
