"""The rules of llm_pipeline/executors/port.py as checks for any executor.

A test module makes a RuleBench for its executor and runs every function of RULES on it; those of CLOSING_RULES close
the executor, so each needs its own.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import pytest

from llm_pipeline.executors.port import Executor, OutputSink
from llm_pipeline.protocol.engine_metrics import FAMILIES, MAX_ACTIVE
from llm_pipeline.protocol.errors import PipelineError
from llm_pipeline.protocol.messages import (
    EngineStep,
    FinishReason,
    GenerationRequest,
    PromptLogprobs,
    RequestEnd,
    RequestLogprobs,
    SamplingParams,
    TopLogprobs,
)
from tests.support.sample_requests import GREEDY, make_request

DEADLINE_S = 30.0


@dataclass(frozen=True)
class Output:
    """The part of an engine step that concerns one request."""

    token_ids: tuple[int, ...] = ()
    finish_reason: FinishReason | None = None
    error: PipelineError | None = None
    logprobs: tuple[float | None, ...] = ()
    top_logprobs: tuple[TopLogprobs, ...] = ()
    prompt_logprobs: PromptLogprobs | None = None

    @property
    def is_final(self) -> bool:
        return self.finish_reason is not None or self.error is not None


def outputs_of(step: EngineStep) -> dict[int, Output]:
    """Returns the step's output by request number."""
    numbers = step.numbers.tolist()
    counts = [1] * len(numbers) if step.counts is None else step.counts.tolist()
    ids = iter(step.token_ids.tolist())
    tokens = {number: tuple(itertools.islice(ids, count)) for number, count in zip(numbers, counts, strict=True)}
    ends = {end.number: end for end in step.ends}
    outputs: dict[int, Output] = {}
    for number in [*tokens, *(number for number in ends if number not in tokens)]:
        end, values = ends.get(number, RequestEnd(number)), step.logprobs.get(number, RequestLogprobs())
        outputs[number] = Output(
            tokens.get(number, ()),
            end.finish_reason,
            end.error,
            values.logprobs,
            values.top_logprobs,
            values.prompt_logprobs,
        )
    return outputs


def violations_of(step: EngineStep) -> list[str]:
    """Returns the rules about the form of a step that it breaks."""
    arrays = [step.numbers, step.token_ids, *([] if step.counts is None else [step.counts])]
    if not all(array.ndim == 1 and np.issubdtype(array.dtype, np.integer) for array in arrays):
        return [f"arrays that are not lists of integers: {[(array.dtype, array.shape) for array in arrays]}"]
    found: list[str] = []
    if step.numbers.dtype != np.int64:
        found.append(f"numbers of type {step.numbers.dtype}")
    if step.counts is not None and (len(step.counts) != len(step.numbers) or not (step.counts > 0).all()):
        found.append("counts that are not one positive integer for each number")
    if len(step.token_ids) != (len(step.numbers) if step.counts is None else step.counts.sum()):
        found.append("a number of token ids that is not the sum of the counts")
    if len(set(step.numbers.tolist())) != len(step.numbers):
        found.append("a request twice in one step")
    if len({end.number for end in step.ends}) != len(step.ends):
        found.append("two ends of one request in one step")
    if any((end.finish_reason is None) == (end.error is None) for end in step.ends):
        found.append("an end without a finish reason or an error, or with both")
    if found:
        return found
    return [
        f"{len(values)} logprobs for {len(output.token_ids)} tokens of request {number}"
        for number, output in outputs_of(step).items()
        for values in (output.logprobs, output.top_logprobs)
        if values and len(values) != len(output.token_ids)
    ]


class StepRecorder:
    """A sink that records the output of every request, and violations of the port's rules.

    `on_step` is called with each step before it is recorded.
    """

    def __init__(self) -> None:
        self.violations: list[str] = []
        self.on_step: Callable[[EngineStep], None] = lambda step: None
        self._newest: tuple[EngineStep, dict[int, Output]] | None = None
        self._changed = threading.Condition()
        self._outputs: dict[int, list[Output]] = defaultdict(list)
        self.ended: list[int] = []  # numbers, in the order of their endings
        self.begun_s: dict[int, float] = {}  # by number, as reported first
        self.first_tokens_s: dict[int, float] = {}  # monotonic
        self._submitting: set[int] = set()
        self._entered: set[int] = set()

    def __call__(self, step: EngineStep) -> None:
        if violations := violations_of(step):
            self.violations += violations
            return
        self.on_step(step)
        outputs = outputs_of(step)
        numbers = set(outputs)
        with self._changed:
            if self._newest is not None and outputs_of(self._newest[0]) != self._newest[1]:
                self.violations.append("a step changed after the call")
            self._newest = step, outputs
            if threading.get_ident() in self._submitting:
                self.violations.append("the sink was called from within submit")
            if numbers & self._entered:
                self.violations.append(f"two calls at a time for {sorted(numbers & self._entered)}")
            self._entered |= numbers
        with self._changed:
            self.begun_s = {**step.begun, **self.begun_s}
            for number, output in outputs.items():
                if output.token_ids:
                    self.first_tokens_s.setdefault(number, time.monotonic())
                if any(earlier.is_final for earlier in self._outputs[number][-1:]):
                    self.violations.append(f"output after the end of {number}")
                self._outputs[number].append(output)
            self.ended += [end.number for end in step.ends]
            self._entered -= numbers
            self._changed.notify_all()

    @contextmanager
    def submitting(self) -> Iterator[None]:
        self._submitting.add(threading.get_ident())
        yield
        self._submitting.discard(threading.get_ident())

    def outputs(self, number: int) -> list[Output]:
        with self._changed:
            return list(self._outputs[number])

    def token_ids(self, number: int) -> list[int]:
        return [token_id for output in self.outputs(number) for token_id in output.token_ids]

    def wait_for(self, is_true: Callable[[], bool]) -> None:
        with self._changed:
            message = f"the executor did not get there before the deadline; violations: {self.violations}"
            assert self._changed.wait_for(is_true, DEADLINE_S), message

    def wait_for_token(self, number: int) -> None:
        self.wait_for(lambda: any(output.token_ids for output in self._outputs[number]))

    def wait_for_end(self, number: int) -> Output:
        """Waits until a request has ended, and returns its last output."""
        self.wait_for(lambda: any(output.is_final for output in self._outputs[number]))
        return self._outputs[number][-1]


class RuleBench:
    """An executor with its recorder.

    `long` is a max_tokens that it does not reach within DEADLINE_S, or is far from reaching when it is cancelled;
    `max_active` requests are served at once. `numbers` are those of requests, for benches that share an executor.
    """

    def __init__(
        self,
        create: Callable[[OutputSink], Executor],
        *,
        long: int,
        max_active: int,
        numbers: Iterator[int] | None = None,
    ) -> None:
        self.recorder = StepRecorder()
        self.executor = create(self.recorder)
        self.long = long
        self.max_active = max_active
        self._numbers = numbers or itertools.count(1)

    def submit(
        self,
        *,
        max_tokens: int | None = None,
        prompt_ids: tuple[int, ...] = (5, 6, 7),
        sampling: SamplingParams = GREEDY,
        stop_token_ids: tuple[int, ...] = (),
        priority: float = 0.5,
    ) -> int:
        """Submits a request under a new number, which is returned."""
        request = make_request("rule", prompt_ids, max_tokens or self.long, sampling, stop_token_ids)
        return self.submit_request(replace(request, urgency=priority))

    def submit_request(self, request: GenerationRequest) -> int:
        """Submits this request under a new number, which is returned."""
        number = next(self._numbers)
        with self.recorder.submitting():
            self.executor.submit(number, request)
        return number

    def end_of(self, number: int) -> Output:
        return self.recorder.wait_for_end(number)

    def end(self, *numbers: int) -> None:
        """Ends the requests, so that the next rule starts with an idle executor."""
        for number in numbers:
            self.executor.cancel(number)
        for number in numbers:
            self.recorder.wait_for_end(number)
        assert self.recorder.violations == []


def a_request_gets_its_tokens_and_one_ending(bench: RuleBench) -> None:
    number = bench.submit(max_tokens=5)
    assert bench.end_of(number).finish_reason is FinishReason.LENGTH
    assert len(bench.recorder.token_ids(number)) == 5
    bench.end(number)


def many_requests_all_end(bench: RuleBench) -> None:
    numbers = [bench.submit(max_tokens=1 + index % 4) for index in range(3 * bench.max_active)]
    for index, number in enumerate(numbers):
        bench.end_of(number)
        assert len(bench.recorder.token_ids(number)) == 1 + index % 4
    bench.end(*numbers)


def an_active_request_can_be_cancelled(bench: RuleBench) -> None:
    number = bench.submit()
    bench.recorder.wait_for_token(number)
    bench.executor.cancel(number)
    assert bench.end_of(number).finish_reason is FinishReason.CANCELLED
    assert len(bench.recorder.token_ids(number)) < bench.long
    bench.end(number)


def a_waiting_request_can_be_cancelled(bench: RuleBench) -> None:
    active = [bench.submit() for _ in range(bench.max_active)]
    for number in active:
        bench.recorder.wait_for_token(number)
    waiting = bench.submit()
    bench.executor.cancel(waiting)
    assert bench.end_of(waiting).finish_reason is FinishReason.CANCELLED
    assert bench.recorder.token_ids(waiting) == []
    bench.end(*active)


def a_freed_slot_goes_to_a_waiting_request(bench: RuleBench) -> None:
    active = [bench.submit() for _ in range(bench.max_active)]
    waiting = bench.submit(max_tokens=2)
    for number in active:
        bench.recorder.wait_for_token(number)
    assert bench.recorder.token_ids(waiting) == []
    bench.end(active[0])
    assert bench.end_of(waiting).finish_reason is FinishReason.LENGTH
    bench.end(*active[1:])


def many_waiting_requests_of_a_tenant_delay_another_by_few(bench: RuleBench) -> None:
    running = [bench.submit() for _ in range(bench.max_active)]
    for number in running:
        bench.recorder.wait_for_token(number)
    request = make_request("rule", max_tokens=2)
    many = [bench.submit_request(replace(request, tenant="many")) for _ in range(8 * bench.max_active)]
    few = bench.submit_request(replace(request, tenant="few"))
    bench.end(*running)
    for number in (*many, few):
        bench.end_of(number)
    order = [number for number in bench.recorder.ended if number in {*many, few}]
    assert order.index(few) <= 3 * bench.max_active


def cancel_ignores_numbers_that_are_unknown_or_have_ended(bench: RuleBench) -> None:
    bench.executor.cancel(2**40)
    number = bench.submit(max_tokens=1)
    bench.end_of(number)
    bench.executor.cancel(number)
    bench.end(bench.submit(max_tokens=1))
    assert bench.recorder.ended.count(number) == 1


def cancel_may_be_called_from_the_sink(bench: RuleBench) -> None:
    def cancel_all(step: EngineStep) -> None:
        for number in step.numbers.tolist():
            bench.executor.cancel(number)

    bench.recorder.on_step = cancel_all
    number = bench.submit()
    assert bench.end_of(number).finish_reason is FinishReason.CANCELLED
    bench.recorder.on_step = lambda step: None
    bench.end(number)


def cancelling_twice_ends_a_request_once(bench: RuleBench) -> None:
    number = bench.submit()
    bench.executor.cancel(number)
    bench.executor.cancel(number)
    bench.end(number)


def stats_count_active_and_queued_requests(bench: RuleBench) -> None:
    active = [bench.submit() for _ in range(bench.max_active)]
    waiting = [bench.submit() for _ in range(2)]
    for number in active:
        bench.recorder.wait_for_token(number)
    bench.recorder.wait_for(lambda: bench.executor.stats().active_requests == bench.max_active)
    assert bench.executor.stats().queued_requests == 2
    bench.end(*active, *waiting)
    stats = bench.executor.stats()
    assert (stats.active_requests, stats.queued_requests) == (0, 0)


def a_request_leaves_the_queue_between_its_arrival_and_its_first_token(bench: RuleBench) -> None:
    arrived_s: dict[int, float] = {}
    for _ in range(bench.max_active + 1):  # the last one waits
        before_s = time.monotonic()
        arrived_s[bench.submit(max_tokens=3)] = before_s
    for number in arrived_s:
        bench.end_of(number)
    for number, before_s in arrived_s.items():
        assert before_s <= bench.recorder.begun_s[number] <= bench.recorder.first_tokens_s[number]


def gauges_have_names_that_are_exported(bench: RuleBench) -> None:
    bench.end_of(bench.submit(max_tokens=3))
    exported = {number for family in FAMILIES for number in family.series}
    gauges = bench.executor.stats().gauges
    assert gauges.keys() <= exported
    assert gauges[MAX_ACTIVE] >= bench.max_active


def submit_and_cancel_may_come_from_any_thread(bench: RuleBench) -> None:
    numbers: list[int] = []

    def client() -> None:
        for index in range(10):
            number = bench.submit(max_tokens=1 + index % 3)
            numbers.append(number)
            if index % 3 == 0:
                bench.executor.cancel(number)

    threads = [threading.Thread(target=client) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert len(numbers) == 40
    for number in numbers:
        bench.end_of(number)
    bench.end(*numbers)


def close_ends_all_requests_and_rejects_new_ones(bench: RuleBench) -> None:
    numbers = [bench.submit() for _ in range(bench.max_active + 2)]
    bench.recorder.wait_for_token(numbers[0])
    bench.executor.close()
    for number in numbers:
        assert bench.end_of(number).finish_reason is FinishReason.CANCELLED
    with pytest.raises(PipelineError):
        bench.submit()
    bench.executor.cancel(numbers[0])
    bench.executor.close()
    stats = bench.executor.stats()
    assert (stats.active_requests, stats.queued_requests) == (0, 0)
    assert bench.recorder.violations == []


RULES = [
    a_request_gets_its_tokens_and_one_ending,
    many_requests_all_end,
    an_active_request_can_be_cancelled,
    a_waiting_request_can_be_cancelled,
    a_freed_slot_goes_to_a_waiting_request,
    many_waiting_requests_of_a_tenant_delay_another_by_few,
    cancel_ignores_numbers_that_are_unknown_or_have_ended,
    cancel_may_be_called_from_the_sink,
    cancelling_twice_ends_a_request_once,
    stats_count_active_and_queued_requests,
    a_request_leaves_the_queue_between_its_arrival_and_its_first_token,
    gauges_have_names_that_are_exported,
    submit_and_cancel_may_come_from_any_thread,
]
CLOSING_RULES = [close_ends_all_requests_and_rejects_new_ones]
