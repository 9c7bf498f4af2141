"""Tells decode that this process lives, once a second while it has requests there; see docs/decisions/0011."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from types import TracebackType

import structlog

from llm_pipeline.protocol.errors import PipelineError

log = structlog.get_logger(__name__)

RENEW_S = 1.0


class Heartbeat:
    """Hold it (`with lease:`) while a request is in work. `renew` sends one message; PipelineError when it can't.

    A message that hangs is waited for, not repeated and not cancelled: decode, which is behind the same Triton, does
    not hear the next one either.
    """

    def __init__(self, renew: Callable[[str], Awaitable[None]]) -> None:
        self.owner = uuid.uuid4().hex  # of this process and this connection, and of no other
        self._renew = renew
        self._held = 0
        self._renewing: asyncio.Task[None] | None = None

    def __enter__(self) -> None:
        self._held += 1
        if self._renewing is None or self._renewing.done():
            self._renewing = asyncio.create_task(self._keep())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._held -= 1

    def close(self) -> None:
        """Nothing is in work any more."""
        if self._renewing is not None:
            self._renewing.cancel()

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(RENEW_S)  # each request is a sign of life by itself, so this comes first
            if not self._held:
                return
            try:
                await self._renew(self.owner)
            except PipelineError as error:
                log.warning("lease_not_renewed", error=error.code.value)
