"""The order of requests that wait for a slot: by priority, then by arrival."""

from __future__ import annotations

from collections import deque
from typing import Protocol, TypeVar

from llm_pipeline.protocol.messages import GenerationRequest


class HasRequest(Protocol):
    """Anything that waits on behalf of a request."""

    @property
    def request(self) -> GenerationRequest: ...


T = TypeVar("T", bound=HasRequest)


def insert_by_urgency(queue: deque[T], item: T) -> None:
    """Inserts `item` after the last entry whose priority is not lower.

    Scans from the back instead of `bisect.insort`: preempted sequences return to the front of the queue whatever their
    priority, so the queue is not always sorted. Most requests have equal priorities, and then this is O(1).
    """
    position = len(queue)
    while position and queue[position - 1].request.urgency < item.request.urgency:
        position -= 1
    queue.insert(position, item)
