"""Cancellations that come before their request are remembered, within limits."""

from __future__ import annotations

from llm_pipeline.stages.decode.pending_cancellations import MAX_AGE_S, PendingCancellations
from tests.support.clock import Clock


def test_a_cancellation_counts_once() -> None:
    pending = PendingCancellations()
    pending.add("a")
    assert pending.on_register("a")
    assert not pending.on_register("a")


def test_a_cancellation_that_comes_after_the_end_is_ignored() -> None:
    """A client that uses a key again must not meet the late cancellation of its earlier request."""
    pending = PendingCancellations()
    pending.on_register("a")
    pending.on_end("a")
    pending.add("a")
    assert not pending.on_register("a")


def test_a_cancellation_expires() -> None:
    """A client that uses its keys again must not meet the cancellation of an earlier request forever."""
    clock = Clock()
    pending = PendingCancellations(clock)
    pending.add("a")
    pending.add("b")
    clock.now_s = 10
    assert pending.on_register("a")
    clock.now_s = MAX_AGE_S + 1
    assert not pending.on_register("b")


def test_the_oldest_cancellations_are_dropped_beyond_the_limit() -> None:
    pending = PendingCancellations(max_keys=3)
    for key in "abcd":
        pending.add(key)
    assert [pending.on_register(key) for key in "abcd"] == [False, True, True, True]


def test_expired_cancellations_make_room() -> None:
    clock = Clock()
    pending = PendingCancellations(clock, max_keys=3)
    for key in "abc":
        pending.add(key)
    clock.now_s = MAX_AGE_S + 1
    for key in "def":
        pending.add(key)
    assert [pending.on_register(key) for key in "abcdef"] == [False, False, False, True, True, True]


def test_only_the_last_ended_keys_are_remembered() -> None:
    pending = PendingCancellations(max_keys=3)
    for key in "abcd":
        pending.on_end(key)
    for key in "abcd":
        pending.add(key)
    assert [pending.on_register(key) for key in "abcd"] == [True, False, False, False]
