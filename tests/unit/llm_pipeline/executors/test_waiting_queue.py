"""The order of waiting requests."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace

from llm_pipeline.executors.waiting_queue import insert_by_urgency
from llm_pipeline.protocol.messages import GenerationRequest
from tests.support.sample_requests import make_request


@dataclass(frozen=True)
class Entry:
    """A request that waits."""

    request: GenerationRequest


def entry(key: str, urgency: float) -> Entry:
    """Returns an entry with this urgency."""
    return Entry(replace(make_request(key), urgency=urgency))


def test_higher_priority_goes_first_and_equal_ones_keep_their_order() -> None:
    queue: deque[Entry] = deque()
    for key, urgency in (("a", 0.5), ("b", 0.5), ("c", 0.9), ("d", 0.1), ("e", 0.9), ("f", 0.5)):
        insert_by_urgency(queue, entry(key, urgency))
    assert "".join(item.request.key for item in queue) == "ceabfd"


def test_preempted_entry_with_low_priority_at_the_front_does_not_disturb_the_order() -> None:
    queue = deque([entry("preempted", 0.1), entry("preempted too", 0.1), entry("high", 0.9)])
    insert_by_urgency(queue, entry("new", 0.5))
    assert [item.request.key for item in queue] == ["preempted", "preempted too", "high", "new"]
