"""The gate of guided requests: holds each until its guide is prepared, so that the executor never sees any other.

A request that is held is live like all others: it can be cancelled, loses its lease, and counts as queued.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from llm_pipeline.guides.preparations import OnPrepared
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.protocol.messages import FinishReason, GenerationRequest, Guide, RequestEnd
from llm_pipeline.stages.decode.request_rows import LiveRequest


class Guides(Protocol):
    """The part of GuideService that the gate uses."""

    def prepare(self, guide: Guide, tenant: str, on_prepared: OnPrepared) -> int:
        """Calls `on_prepared` from another thread. Returns a ticket."""

    def release(self, ticket: int) -> None:
        """Ends the use of a guide, or the wait for it."""

    def close(self) -> None:
        """Ends all waits and frees all guides."""


@dataclass(eq=False)
class _Held:
    live: LiveRequest
    request: GenerationRequest
    ticket: int | None = None


class GuideGate:
    """Guided requests from their registration until their end. Thread-safe.

    `submit` passes a request to the executor, and `end` ends one that does not get there. Neither is called while the
    gate holds its lock.
    """

    def __init__(
        self,
        guides: Guides,
        *,
        submit: Callable[[LiveRequest, GenerationRequest], None],
        end: Callable[[RequestEnd], None],
    ) -> None:
        self._guides = guides
        self._submit = submit
        self._end = end
        self._lock = threading.Lock()  # guards the next three
        self._held: dict[int, _Held] = {}  # by number, while the guide is prepared
        self._passed: set[_Held] = set()  # given to the executor
        self._is_closed = False
        self._passing_lock = threading.Lock()  # held while a request is passed on; taken before the other

    @property
    def held_count(self) -> int:
        """Number of requests that wait for their guide."""
        return len(self._held)

    def hold(self, live: LiveRequest, request: GenerationRequest) -> None:
        """Submits a request once its guide is prepared, or ends it. Raises PipelineError after `close`."""
        assert request.guide is not None
        held = _Held(live, request)
        with self._lock:
            if self._is_closed:
                raise PipelineError(ErrorCode.ENGINE_UNAVAILABLE, "The engine is shutting down. Retry shortly.")
            self._held[live.number] = held
            # Within the lock, which the callback takes, so that the ticket is known there.
            held.ticket = self._guides.prepare(
                request.guide, request.tenant, lambda address, error: self._on_prepared(held, address, error)
            )

    def cancel(self, number: int) -> bool:
        """Ends a request that is held, as cancelled. Returns False if it is not held."""
        with self._lock:
            held = self._held.pop(number, None)
        if held is None:
            return False
        self._release(held)
        self._end(RequestEnd(number, FinishReason.CANCELLED))
        return True

    def release_ended(self) -> None:
        """Frees the guides of requests that have ended. To be called periodically."""
        with self._lock:
            ended = [held for held in (*self._passed, *self._held.values()) if held.live.has_ended]
            self._passed.difference_update(ended)
            for held in ended:
                self._held.pop(held.live.number, None)
        for held in ended:
            self._release(held)

    def close(self) -> None:
        """Ends the requests that are held. None reaches the executor afterwards."""
        with self._lock:
            self._is_closed = True
            numbers = list(self._held)
        for number in numbers:
            self.cancel(number)
        with self._passing_lock:
            pass

    def _on_prepared(self, held: _Held, address: str | None, error: PipelineError | None) -> None:
        number = held.live.number
        with self._passing_lock:
            with self._lock:
                if self._held.pop(number, None) is None:  # cancelled
                    return
                if error is None:
                    self._passed.add(held)
            if error is None:
                self._submit(held.live, replace(held.request, guide_address=address))
            else:
                self._release(held)
                self._end(RequestEnd(number, error=error))

    def _release(self, held: _Held) -> None:
        if held.ticket is not None:
            self._guides.release(held.ticket)
