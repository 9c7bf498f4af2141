"""Background work of one of several workers: its heartbeat, its metrics file, and a start delayed until ready."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import structlog

from frontend.multiprocess.merged_metrics import MergedMetrics
from frontend.multiprocess.shared_state import SharedState

log = structlog.get_logger(__name__)

_HEARTBEAT_S = 0.1
_HEARTBEATS_PER_WRITE = 5
# A worker that replaces a dead one lets connections wait until it is ready to serve them, up to this long.
_MAX_START_DELAY_S = 5.0


@asynccontextmanager
async def run_heartbeat(
    workers: SharedState, metrics: MergedMetrics | None, is_ready: Callable[[], bool]
) -> AsyncIterator[None]:
    """Runs for the lifetime of an app. Does nothing in a front end of one process."""
    if workers.count == 1:
        yield
        return
    heartbeat = asyncio.create_task(_beat(workers, metrics, is_ready, os.getppid()))
    if workers.has_started:
        await _wait_until_ready(is_ready)
    try:
        yield
    finally:
        heartbeat.cancel()
        with suppress(asyncio.CancelledError):
            await heartbeat
        _write(metrics)


async def _beat(
    workers: SharedState, metrics: MergedMetrics | None, is_ready: Callable[[], bool], supervisor: int
) -> None:
    beats = 0
    while True:
        workers.heartbeat(is_ready=is_ready())
        if beats % _HEARTBEATS_PER_WRITE == 0:
            _write(metrics)
        if os.getppid() != supervisor:  # it was killed, on a system without a parent-death signal
            signal.raise_signal(signal.SIGTERM)
            supervisor = os.getppid()
        beats += 1
        await asyncio.sleep(_HEARTBEAT_S)


def _write(metrics: MergedMetrics | None) -> None:
    try:
        if metrics is not None:
            metrics.write()
    except OSError as error:  # the disk is full: serving goes on, and the next write may succeed
        log.warning("metrics_not_written", reason=error.strerror)


async def _wait_until_ready(is_ready: Callable[[], bool]) -> None:
    with suppress(asyncio.TimeoutError):
        await asyncio.wait_for(_ready(is_ready), _MAX_START_DELAY_S)


async def _ready(is_ready: Callable[[], bool]) -> None:
    while not is_ready():  # noqa: ASYNC110 - it depends on readiness and on draining, which send no events
        await asyncio.sleep(_HEARTBEAT_S / 5)
