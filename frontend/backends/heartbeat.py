"""Renews this process's lease with decode once per second while it has requests there; see docs/decisions/0011."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from types import TracebackType

import structlog

from llm_pipeline.protocol.errors import PipelineError

log = structlog.get_logger(__name__)


class Heartbeat:
    """Renews the lease while at least one request is running. Also a context manager for the time of one request.

    `renew` sends one message and raises PipelineError if it cannot be delivered. A message without a response is
    neither repeated nor cancelled: it goes to the same Triton as the next one would.
    """

    def __init__(self, renew: Callable[[str], Awaitable[None]], *, interval_s: float = 1.0) -> None:
        self.client_id = uuid.uuid4().hex  # unique to this process and connection
        self._renew = renew
        self._interval_s = interval_s
        self._running = 0  # requests
        self._task: asyncio.Task[None] | None = None

    @property
    def is_beating(self) -> bool:
        """Whether the lease is being renewed. Ends up to one interval after the last request."""
        return self._task is not None and not self._task.done()

    def request_begins(self) -> None:
        """Starts the heartbeat unless it is beating."""
        self._running += 1
        if not self.is_beating:
            self._task = asyncio.create_task(self._beat())

    def request_ends(self) -> None:
        """Ends the heartbeat, within one interval, if no other request is running."""
        self._running -= 1

    def __enter__(self) -> None:
        self.request_begins()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.request_ends()

    def close(self) -> None:
        """Ends the heartbeat."""
        if self._task is not None:
            self._task.cancel()

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s)  # first, because a request renews the lease by itself
            if not self._running:
                return
            try:
                await self._renew(self.client_id)
            except PipelineError as error:
                log.warning("lease_not_renewed", error=error.code.value)
