"""Cancels a request until the engine has confirmed its end, and abandons it if the engine never does."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import structlog

from frontend.backends.generator import Generator
from llm_pipeline.protocol.errors import PipelineError
from llm_pipeline.protocol.messages import CompletionParameters

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class CancelTimeouts:
    """Timeouts in seconds. A cancellation is lost if it overtakes its own request on the way to decode, so it is
    repeated with growing intervals.
    """

    confirm_s: float = 30.0  # until a request that the engine does not end is abandoned
    first_repeat_s: float = 0.5
    max_repeat_s: float = 5.0


async def cancel_until_done(
    generator: Generator, parameters: CompletionParameters, stream_task: asyncio.Task[Any], timeouts: CancelTimeouts
) -> None:
    """Repeats the cancellation until `stream_task`, which awaits the generator, is done."""
    repeat_s, waited_s = timeouts.first_repeat_s, 0.0
    while waited_s < timeouts.confirm_s and not stream_task.done():
        try:
            await generator.cancel(parameters.request_key)
        except PipelineError as error:
            log.warning("cancel_failed", request_id=parameters.request_id, error=error.code.value)
        await asyncio.wait({stream_task}, timeout=repeat_s)
        waited_s += repeat_s
        repeat_s = min(repeat_s * 2, timeouts.max_repeat_s)
    abandon(stream_task, parameters.request_id)


def abandon_later(
    stream_task: asyncio.Task[Any] | None, request_id: str, timeouts: CancelTimeouts
) -> asyncio.TimerHandle | None:
    """Schedules `abandon` for a stream with a finish reason, in case the engine never ends it. None without a task."""
    if stream_task is None:
        return None
    return asyncio.get_running_loop().call_later(timeouts.confirm_s, abandon, stream_task, request_id)


def abandon(stream_task: asyncio.Task[Any], request_id: str) -> None:
    """Ends a stream that the engine has not ended in time. This cancels its call to Triton: a last resort."""
    if not stream_task.done():
        log.error("engine_does_not_end_request", request_id=request_id)
        stream_task.cancel()
