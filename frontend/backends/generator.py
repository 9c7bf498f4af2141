"""Defines the Generator port: completes prompts, in terms of messages instead of Triton's tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias

from llm_pipeline.protocol.engine_metrics import EngineReport
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.protocol.messages import CompletionParameters, TextChunk
from llm_pipeline.protocol.model_info import ModelInfo

OnChunk: TypeAlias = Callable[[TextChunk], None]
OnReport: TypeAlias = Callable[[EngineReport], None]
"""Receives what an engine reports about itself. Must not raise."""


def ignore_report(_report: EngineReport) -> None:
    """For a generator whose reports are not used."""


class UnreachableError(PipelineError):
    """The request has not reached any engine, so it may be retried on another endpoint."""

    def __init__(self) -> None:
        super().__init__(ErrorCode.SERVICE_UNAVAILABLE, "The model server cannot be reached. Retry the request.")


class NoRoomError(PipelineError):
    """Triton has no shared memory left for this request. The endpoint is healthy and may serve the next one."""

    def __init__(self) -> None:
        super().__init__(ErrorCode.SERVICE_UNAVAILABLE, "The model server is out of memory. Retry the request.")


class Generator(Protocol):
    """Completes many prompts concurrently. An implementation belongs to one event loop.

    Chunks are pushed instead of awaited: the chunks of all requests arrive together, and a wake-up of one task for each
    would cost more than the chunk itself.

    Callers must await `generate` to its end: past the finish reason, and past a `cancel`. Its end means that the engine
    has finished its work for the request. Cancelling a task that waits for it is a last resort: it may cancel the call
    to Triton, which this Triton version does not always survive (server PR 8078).
    """

    @property
    def is_progressing(self) -> bool:
        """Whether the engine makes steps, as of the last `is_ready`; True if it has no work, or does not report it."""

    async def generate(self, parameters: CompletionParameters, on_chunk: OnChunk) -> None:
        """Runs one completion to its end. Calls `on_chunk`, which must not raise, for each chunk as it arrives.

        Raises PipelineError if the completion fails; UnreachableError only before the first chunk. No chunk arrives
        after it has returned or raised.
        """

    async def cancel(self, key: str) -> None:
        """Requests the end of the request with this key. Raises PipelineError if the message cannot be delivered."""

    async def get_model_info(self) -> ModelInfo:
        """Returns the limits and capabilities of the model. Raises PipelineError if the engine cannot be reached."""

    async def is_ready(self) -> bool:
        """Whether the engine can be reached, has loaded the model, and answers while requests wait for it.

        Never raises, and returns within seconds.
        """

    async def close(self) -> None:
        """Closes all connections."""
