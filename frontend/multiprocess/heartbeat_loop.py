"""What a worker of several does beside serving: shows life, writes its metrics, and doesn't serve before it can."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import structlog

from frontend.dependencies import Dependencies

log = structlog.get_logger(__name__)

_BEAT_S = 0.1
_BEATS_PER_WRITE = 5
# A worker that takes a dead one's place lets connections wait until it can answer them, but not for ever.
_WARM_UP_BEHIND_CLOSED_DOORS_S = 5.0


@asynccontextmanager
async def run_heartbeat(services: Dependencies) -> AsyncIterator[None]:
    """Around the life of an app. Does nothing in a front end of one process."""
    if services.workers.count == 1:
        yield
        return
    life = asyncio.create_task(_live(services, os.getppid()))
    if services.workers.has_started:
        await _until_ready(services)
    try:
        yield
    finally:
        life.cancel()
        with suppress(asyncio.CancelledError):
            await life
        _write_metrics(services)


async def _live(services: Dependencies, supervisor: int) -> None:
    beats = 0
    while True:
        services.workers.heartbeat(is_ready=services.is_ready)
        if beats % _BEATS_PER_WRITE == 0:
            _write_metrics(services)
        if os.getppid() != supervisor:  # killed; where the kernel can't tell us, this does
            signal.raise_signal(signal.SIGTERM)
            supervisor = os.getppid()
        beats += 1
        await asyncio.sleep(_BEAT_S)


def _write_metrics(services: Dependencies) -> None:
    try:
        if services.metrics_of_all is not None:
            services.metrics_of_all.write()
    except OSError as error:  # a full disk: serving goes on, and the next write may do
        log.warning("metrics_not_written", reason=error.strerror)


async def _until_ready(services: Dependencies) -> None:
    with suppress(asyncio.TimeoutError):
        await asyncio.wait_for(_ready(services), _WARM_UP_BEHIND_CLOSED_DOORS_S)


async def _ready(services: Dependencies) -> None:
    while not services.is_ready:  # noqa: ASYNC110 - readiness and draining make it up, and neither announces it
        await asyncio.sleep(_BEAT_S / 5)
