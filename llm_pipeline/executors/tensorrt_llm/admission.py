"""Requests that wait in front of the engine, and how many of them the engine may have at a time.

Upstream starts requests in the order of their priority and arrival. It gets only what it can start soon, so that its
own queue stays short and the order of waiting_queue.py applies to all others. The limit adapts to the engine like a
congestion window: KV cache, prompt lengths and batch size, which limit what a step can start, are upstream's to know.
"""

from __future__ import annotations

import time

from llm_pipeline.executors.tensorrt_llm.responses import deadline_exceeded
from llm_pipeline.executors.waiting_queue import FairQueue
from llm_pipeline.protocol.messages import FinishReason, GenerationRequest, RequestEnd

_MIN_UNSTARTED = 8  # requests without a token in the engine
_MAX_LOOKAHEAD = 8  # requests beyond the batch, so that a slot that becomes free is filled in the next step


class WaitingRequest:
    """A request and its form for the engine. `deadline` is on the monotonic clock, None without a time limit."""

    __slots__ = ("deadline", "number", "prepared", "request")

    def __init__(self, number: int, request: GenerationRequest, prepared: object) -> None:
        self.number = number
        self.request = request
        self.prepared = prepared
        self.deadline = None if request.time_limit_s is None else time.monotonic() + request.time_limit_s


class Admission:
    """The queue and the limit. Not thread-safe: the executor guards it."""

    def __init__(self, max_batch_size: int) -> None:
        self._max_in_engine = max_batch_size + min(max(max_batch_size // 8, 1), _MAX_LOOKAHEAD)
        self._max_unstarted = _MIN_UNSTARTED
        self._queue: FairQueue[WaitingRequest] = FairQueue()
        self._by_number: dict[int, WaitingRequest] = {}
        self._timed: dict[int, WaitingRequest] = {}  # those with a deadline
        self._cancelled: list[int] = []  # numbers

    def __len__(self) -> int:
        return len(self._queue)

    @property
    def needs_attention(self) -> bool:
        """Whether a request waits, or was cancelled while it waited. May be read without the lock."""
        return bool(len(self._queue) or self._cancelled)

    @property
    def first(self) -> WaitingRequest | None:
        """The request that goes next; None if none waits."""
        return self._queue.first

    def has_room(self, *, in_engine: int, unstarted: int) -> bool:
        """Returns whether an engine with `in_engine` requests, `unstarted` of them without a token, may get another."""
        return in_engine < self._max_in_engine and unstarted < self._max_unstarted

    def on_round(self, *, started: int, unstarted: int) -> None:
        """Adapts the limit to a step of the engine that has started requests, or has left requests unstarted."""
        if started or unstarted:
            self._max_unstarted = max(2 * started, self._max_unstarted // 2, _MIN_UNSTARTED)

    def add(self, waiting: WaitingRequest) -> None:
        self._queue.add(waiting)
        self._by_number[waiting.number] = waiting
        if waiting.deadline is not None:
            self._timed[waiting.number] = waiting

    def take(self) -> WaitingRequest:
        """Removes and returns the first request."""
        waiting = self._queue.take()
        del self._by_number[waiting.number]
        self._timed.pop(waiting.number, None)
        return waiting

    def cancel(self, number: int) -> bool:
        """Removes a request, whose end `take_ended` returns. Returns False if it does not wait."""
        is_waiting = number in self._by_number
        if is_waiting:
            self._remove(number)
            self._cancelled.append(number)
        return is_waiting

    def take_ended(self) -> list[RequestEnd]:
        """Returns the ends of the requests that were cancelled, and of those whose deadline has passed."""
        ends = [RequestEnd(number, FinishReason.CANCELLED) for number in self._cancelled]
        self._cancelled.clear()
        now = time.monotonic()
        for number, waiting in list(self._timed.items()):
            if waiting.deadline is not None and waiting.deadline < now:
                self._remove(number)
                ends.append(RequestEnd(number, error=deadline_exceeded()))
        return ends

    def take_all(self) -> list[int]:
        """Removes all requests, and returns their numbers, with those of `take_ended`."""
        numbers = [*self._cancelled, *self._by_number]
        self._cancelled.clear()
        self._queue.clear()
        self._by_number.clear()
        self._timed.clear()
        return numbers

    def _remove(self, number: int) -> None:
        self._queue.remove(self._by_number.pop(number))
        self._timed.pop(number, None)
