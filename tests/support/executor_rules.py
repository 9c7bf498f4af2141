"""The rules of llm_pipeline/executors/port.py as checks that any executor can be held to.

A test module makes a RuleBench for its executor and runs every function of RULES on it; those of CLOSING_RULES end
the executor, so each needs one of its own.
"""

from __future__ import annotations

import itertools
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import pytest

from llm_pipeline.executors.port import Executor, OutputSink
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.protocol.messages import FinishReason, SamplingParams, StepOutput
from tests.support.sample_requests import GREEDY, make_request

DEADLINE_S = 30.0


class StepRecorder:
    """A sink that keeps all steps, and notes what an executor must never do."""

    def __init__(self) -> None:
        self.violations: list[str] = []
        self._changed = threading.Condition()
        self._steps: dict[str, list[StepOutput]] = defaultdict(list)
        self.ended: list[str] = []  # keys, in the order of their endings
        self._submitting: set[int] = set()
        self._entered: set[str] = set()

    def __call__(self, steps: Sequence[StepOutput]) -> None:
        keys = {step.key for step in steps}
        with self._changed:
            if threading.get_ident() in self._submitting:
                self.violations.append("the sink was called from within submit")
            if keys & self._entered:
                self.violations.append(f"two steps at a time for {sorted(keys & self._entered)}")
            self._entered |= keys
        with self._changed:
            for step in steps:
                if any(earlier.is_final for earlier in self._steps[step.key]):
                    self.violations.append(f"a step after the end of {step.key}")
                self._steps[step.key].append(step)
                if step.is_final:
                    self.ended.append(step.key)
            self._entered -= keys
            self._changed.notify_all()

    @contextmanager
    def submitting(self) -> Iterator[None]:
        self._submitting.add(threading.get_ident())
        yield
        self._submitting.discard(threading.get_ident())

    def steps(self, key: str) -> list[StepOutput]:
        with self._changed:
            return list(self._steps[key])

    def token_ids(self, key: str) -> list[int]:
        return [token_id for step in self.steps(key) for token_id in step.token_ids]

    def wait_for(self, is_true: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(is_true, DEADLINE_S), "the executor did not get there in time"

    def wait_for_token(self, key: str) -> None:
        self.wait_for(lambda: any(step.token_ids for step in self._steps[key]))

    def wait_for_end(self, key: str) -> StepOutput:
        self.wait_for(lambda: any(step.is_final for step in self._steps[key]))
        return self._steps[key][-1]


class RuleBench:
    """An executor with its recorder.

    `long` is a max_tokens that it does not reach within DEADLINE_S, or is far from reaching when it is cancelled;
    `max_active` requests are served at once.
    """

    def __init__(self, create: Callable[[OutputSink], Executor], *, long: int, max_active: int) -> None:
        self.recorder = StepRecorder()
        self.executor = create(self.recorder)
        self.long = long
        self.max_active = max_active
        self._numbers = itertools.count(1)

    def submit(
        self,
        *,
        max_tokens: int | None = None,
        prompt_ids: tuple[int, ...] = (5, 6, 7),
        sampling: SamplingParams = GREEDY,
        stop_token_ids: tuple[int, ...] = (),
        priority: float = 0.5,
    ) -> str:
        """Submit a request under a new key, which is returned."""
        key = f"rule request {next(self._numbers)}"
        request = make_request(key, prompt_ids, max_tokens or self.long, sampling, stop_token_ids)
        with self.recorder.submitting():
            self.executor.submit(replace(request, urgency=priority))
        return key

    def end_of(self, key: str) -> StepOutput:
        return self.recorder.wait_for_end(key)

    def end(self, *keys: str) -> None:
        """Leave nothing behind for the next rule."""
        for key in keys:
            self.executor.cancel(key)
        for key in keys:
            self.recorder.wait_for_end(key)
        assert self.recorder.violations == []


def a_request_gets_its_tokens_and_one_ending(bench: RuleBench) -> None:
    key = bench.submit(max_tokens=5)
    assert bench.end_of(key).finish_reason is FinishReason.LENGTH
    assert len(bench.recorder.token_ids(key)) == 5
    bench.end(key)


def many_requests_all_end(bench: RuleBench) -> None:
    keys = [bench.submit(max_tokens=1 + number % 4) for number in range(3 * bench.max_active)]
    for number, key in enumerate(keys):
        bench.end_of(key)
        assert len(bench.recorder.token_ids(key)) == 1 + number % 4
    bench.end(*keys)


def an_active_request_can_be_cancelled(bench: RuleBench) -> None:
    key = bench.submit()
    bench.recorder.wait_for_token(key)
    bench.executor.cancel(key)
    assert bench.end_of(key).finish_reason is FinishReason.CANCELLED
    assert len(bench.recorder.token_ids(key)) < bench.long
    bench.end(key)


def a_waiting_request_can_be_cancelled_before_its_turn(bench: RuleBench) -> None:
    active = [bench.submit() for _ in range(bench.max_active)]
    for key in active:
        bench.recorder.wait_for_token(key)
    waiting = bench.submit()
    bench.executor.cancel(waiting)
    assert bench.end_of(waiting).finish_reason is FinishReason.CANCELLED
    assert bench.recorder.token_ids(waiting) == []
    bench.end(*active)


def a_freed_place_goes_to_the_one_that_waits(bench: RuleBench) -> None:
    active = [bench.submit() for _ in range(bench.max_active)]
    waiting = bench.submit(max_tokens=2)
    for key in active:
        bench.recorder.wait_for_token(key)
    assert bench.recorder.token_ids(waiting) == []
    bench.end(active[0])
    assert bench.end_of(waiting).finish_reason is FinishReason.LENGTH
    bench.end(*active[1:])


def cancel_ignores_keys_that_are_unknown_or_ended(bench: RuleBench) -> None:
    bench.executor.cancel("nobody")
    key = bench.submit(max_tokens=1)
    bench.end_of(key)
    bench.executor.cancel(key)
    bench.end(bench.submit(max_tokens=1))
    assert len([step for step in bench.recorder.steps(key) if step.is_final]) == 1


def a_key_in_use_is_refused_and_its_owner_goes_on(bench: RuleBench) -> None:
    key = bench.submit()
    bench.recorder.wait_for_token(key)
    for _ in range(2):
        with pytest.raises(PipelineError, match="request_key") as refused:
            bench.executor.submit(make_request(key, max_tokens=2))
        assert refused.value.code is ErrorCode.VALUE_OUT_OF_RANGE
    bench.executor.cancel(key)
    assert bench.end_of(key).finish_reason is FinishReason.CANCELLED
    bench.end(key)
    bench.end_of(bench.submit(max_tokens=1))  # the engine has not noticed anything


def cancelling_twice_is_cancelling_once(bench: RuleBench) -> None:
    key = bench.submit()
    bench.executor.cancel(key)
    bench.executor.cancel(key)
    bench.end(key)


def stats_count_who_is_served_and_who_waits(bench: RuleBench) -> None:
    active = [bench.submit() for _ in range(bench.max_active)]
    waiting = [bench.submit() for _ in range(2)]
    for key in active:
        bench.recorder.wait_for_token(key)
    bench.recorder.wait_for(lambda: bench.executor.stats().active_requests == bench.max_active)
    assert bench.executor.stats().queued_requests == 2
    bench.end(*active, *waiting)
    stats = bench.executor.stats()
    assert (stats.active_requests, stats.queued_requests) == (0, 0)


def submit_and_cancel_may_come_from_any_thread(bench: RuleBench) -> None:
    keys: list[str] = []

    def client() -> None:
        for number in range(10):
            key = bench.submit(max_tokens=1 + number % 3)
            keys.append(key)
            if number % 3 == 0:
                bench.executor.cancel(key)

    threads = [threading.Thread(target=client) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert len(keys) == 40
    for key in keys:
        bench.end_of(key)
    bench.end(*keys)


def close_ends_all_requests_and_takes_no_more(bench: RuleBench) -> None:
    keys = [bench.submit() for _ in range(bench.max_active + 2)]
    bench.recorder.wait_for_token(keys[0])
    bench.executor.close()
    for key in keys:
        assert bench.end_of(key).finish_reason is FinishReason.CANCELLED
    with pytest.raises(PipelineError):
        bench.submit()
    bench.executor.cancel(keys[0])
    bench.executor.close()
    stats = bench.executor.stats()
    assert (stats.active_requests, stats.queued_requests) == (0, 0)
    assert bench.recorder.violations == []


RULES = [
    a_request_gets_its_tokens_and_one_ending,
    many_requests_all_end,
    an_active_request_can_be_cancelled,
    a_waiting_request_can_be_cancelled_before_its_turn,
    a_freed_place_goes_to_the_one_that_waits,
    cancel_ignores_keys_that_are_unknown_or_ended,
    a_key_in_use_is_refused_and_its_owner_goes_on,
    cancelling_twice_is_cancelling_once,
    stats_count_who_is_served_and_who_waits,
    submit_and_cancel_may_come_from_any_thread,
]
CLOSING_RULES = [close_ends_all_requests_and_takes_no_more]
