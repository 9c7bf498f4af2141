"""Stands in for the guide service: guides are prepared when a test says so, or at random."""

from __future__ import annotations

import random
import threading
from queue import SimpleQueue

from llm_pipeline.guides.checks import bad_guide
from llm_pipeline.guides.preparations import OnPrepared
from llm_pipeline.protocol.errors import PipelineError
from llm_pipeline.protocol.messages import Guide

BAD_GUIDE = bad_guide("The guide takes too long.")
ADDRESS = "/tmp/guide"


class DrivenGuides:
    """Prepares a guide when the test calls `finish`, in the test's thread."""

    def __init__(self) -> None:
        self.waiting: dict[int, OnPrepared] = {}  # by ticket
        self.tenants: list[str] = []
        self.released: list[int] = []
        self.is_closed = False
        self._next_ticket = 0

    def prepare(self, guide: Guide, tenant: str, on_prepared: OnPrepared) -> int:
        self._next_ticket += 1
        self.waiting[self._next_ticket] = on_prepared
        self.tenants.append(tenant)
        return self._next_ticket

    def release(self, ticket: int) -> None:
        self.released.append(ticket)

    def finish(self, ticket: int, error: PipelineError | None = None) -> None:
        """Prepares a guide, also one that has been released: the two may cross."""
        self.waiting.pop(ticket)(None if error else ADDRESS, error)

    def close(self) -> None:
        self.is_closed = True


class RandomGuides:
    """Prepares or refuses guides at random on its own thread, and sometimes after their release."""

    def __init__(self, seed: int) -> None:
        self._dice = random.Random(f"{seed} guides")
        self._lock = threading.Lock()
        self._next_ticket = 0
        self._unreleased: set[int] = set()
        self._doubly_released = 0
        self._queue: SimpleQueue[tuple[int, OnPrepared] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="random-guides", daemon=True)
        self._thread.start()

    def prepare(self, guide: Guide, tenant: str, on_prepared: OnPrepared) -> int:
        with self._lock:
            self._next_ticket += 1
            self._unreleased.add(self._next_ticket)
            self._queue.put((self._next_ticket, on_prepared))
            return self._next_ticket

    def release(self, ticket: int) -> None:
        with self._lock:
            self._doubly_released += ticket not in self._unreleased
            self._unreleased.discard(ticket)

    def close(self) -> None:
        self._queue.put(None)
        self._thread.join(timeout=10)

    def check_closed(self) -> None:
        """Fails unless the thread has ended, and no guide was released twice."""
        assert not self._thread.is_alive()
        assert not self._doubly_released

    def _run(self) -> None:
        while (work := self._queue.get()) is not None:
            ticket, on_prepared = work
            with self._lock:
                is_released = ticket not in self._unreleased
            if is_released and self._dice.random() < 0.5:
                continue
            error = BAD_GUIDE if self._dice.random() < 0.2 else None
            on_prepared(None if error else ADDRESS, error)
