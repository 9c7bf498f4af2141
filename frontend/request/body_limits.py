"""Limits of request bodies while they arrive: the bytes of all of them together, and their time.

Bytes count when they have arrived, not when a Content-Length announces them: an announcement costs a client nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from types import TracebackType

from starlette.requests import Request
from starlette.types import Message
from typing_extensions import Self

from frontend.unfinished import Unfinished
from llm_pipeline.protocol.errors import ErrorCode, PipelineError

_SMALL_BODY_BYTES = 64 * 1024
_RETRY_AFTER_S = 1.0
_MIN_BYTES_PER_S = 1024  # on average, after the first `idle_s`; Apache's mod_reqtimeout has 500


class BodyClock:
    """The time until the next part of one body has to arrive.

    `timeout_s` is the time of the whole request, `idle_s` that without a byte of its body.
    """

    def __init__(self, timeout_s: float, idle_s: float) -> None:
        self._timeout_s = timeout_s
        self._idle_s = idle_s
        self._started_s = self._last_s = time.monotonic()
        self._size = 0

    def received(self, size: int) -> None:
        """A part has arrived. An empty one is no progress."""
        if size:
            self._size += size
            self._last_s = time.monotonic()

    async def wait_for(self, request: Request) -> Message:
        """The next message. Raises PipelineError (408, 504) if it is late."""
        receiving = request.receive()
        try:
            waits_for = receiving.send(None)  # type: ignore[attr-defined]  # a coroutine, in every ASGI server
        except StopIteration as end:  # a short body arrives together with the head
            message: Message = end.value
            return message
        unfinished: Unfinished[Message] = Unfinished(receiving, waits_for)  # type: ignore[arg-type]
        now_s, deadline_s = time.monotonic(), self._started_s + self._timeout_s
        part_s = min(self._last_s, self._started_s + self._size / _MIN_BYTES_PER_S) + self._idle_s
        try:
            return await asyncio.wait_for(unfinished, max(min(deadline_s, part_s) - now_s, 0.0))
        except asyncio.TimeoutError:
            raise (self._request_late() if deadline_s <= part_s else self._body_late()) from None

    def _request_late(self) -> PipelineError:
        message = "The request exceeded its timeout before its body was complete."
        return PipelineError(ErrorCode.DEADLINE_EXCEEDED, message)

    def _body_late(self) -> PipelineError:
        return PipelineError(
            ErrorCode.REQUEST_TIMEOUT,
            f"The body did not arrive in time: it must progress within {self._idle_s:g} s, and at "
            f"{_MIN_BYTES_PER_S} bytes a second on average. Send it without pauses.",
        )


class BodyBudget:
    """The bytes of all bodies that are being received or parsed. Belongs to one event loop.

    A holder, which is an API key, may hold as many bytes as it leaves free: one alone half of the budget, two a third
    each. So the budget is never exhausted by a few holders, and needs no number of them (the dynamic thresholds of
    Choudhury and Hahne, "Dynamic queue length thresholds for shared-memory packet switches", 1998). Without API keys
    there is one holder: small bodies may then use all of the budget, and are served beside many large ones.
    """

    def __init__(self, max_bytes: int) -> None:
        self._free = max_bytes
        self._held: defaultdict[str | None, int] = defaultdict(int)

    @property
    def free(self) -> int:
        """Bytes without a holder."""
        return self._free

    def share(self, holder: str | None) -> BodyShare:
        """The bytes of one body, none yet. `holder` is None without API keys."""
        return BodyShare(self, holder)

    def take(self, holder: str | None, size: int, *, is_small: bool) -> None:
        """Takes bytes for a holder. Raises PipelineError (503) if that is more than its share."""
        rest = self._free - size
        if rest < 0 or (self._held[holder] + size > rest and not (holder is None and is_small)):
            raise PipelineError(
                ErrorCode.SERVICE_UNAVAILABLE,
                "This server is receiving too many large bodies. Retry after the delay in the Retry-After header.",
                retry_after_s=_RETRY_AFTER_S,
            )
        self._free = rest
        self._held[holder] += size

    def give_back(self, holder: str | None, size: int) -> None:
        """Returns bytes that were taken."""
        self._free += size
        self._held[holder] -= size
        if not self._held[holder]:
            del self._held[holder]


class BodyShare:
    """The bytes that one body has of the budget. A context manager that returns them."""

    def __init__(self, budget: BodyBudget, holder: str | None) -> None:
        self._budget = budget
        self._holder = holder
        self._size = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._size:
            self._budget.give_back(self._holder, self._size)
            self._size = 0

    def take(self, size: int) -> None:
        """Takes bytes that have arrived. Raises PipelineError (503)."""
        if size:
            self._budget.take(self._holder, size, is_small=self._size + size <= _SMALL_BODY_BYTES)
            self._size += size
