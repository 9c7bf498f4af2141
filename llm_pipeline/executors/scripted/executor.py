"""An executor without a model: replays or synthesizes tokens at a set pace. For tests, load tests and demonstrations.

It behaves like an engine with in-flight batching: one thread makes one token for every active request in each step,
requests beyond `max_active` wait for their turn (waiting_queue.py), and a cancelled one ends at the next step. A stop
token ends a request, unless min_tokens forbids it: then it is passed on like any other token.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from llm_pipeline.executors.port import ExecutorStats, GuardedSink, OutputSink
from llm_pipeline.executors.scripted.faults import Fault
from llm_pipeline.executors.scripted.scripts import Script, find_script, outputs_of
from llm_pipeline.executors.scripted.synthetic import SyntheticStreams, SyntheticText, SyntheticWords
from llm_pipeline.executors.step_builder import RequestOutput, StepBuilder
from llm_pipeline.executors.waiting_queue import FairQueue
from llm_pipeline.protocol.capabilities import CAPABILITIES, check_supported
from llm_pipeline.protocol.engine_metrics import MAX_ACTIVE
from llm_pipeline.protocol.errors import ErrorCode, PipelineError, internal_error
from llm_pipeline.protocol.messages import EngineStep, FinishReason, GenerationRequest, IntArray, RequestEnd, ends_only

_log = logging.getLogger(__name__)
_JOIN_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class _Stream:
    """One request, and its text or its remaining outputs."""

    number: int
    request: GenerationRequest
    content: SyntheticText | Iterator[RequestOutput | EngineStep]


class ScriptedExecutor:
    """An Executor that takes its tokens from `scripts`, or else from `words`, which are distinct token ids.

    `steps_per_s` is the pace of each stream in tokens per second; 0 is as fast as possible.
    """

    def __init__(
        self, scripts: Sequence[Script], words: Sequence[int], sink: OutputSink, *, steps_per_s: float, max_active: int
    ) -> None:
        self._output = GuardedSink(sink)
        self._period_s = 1 / steps_per_s if steps_per_s else 0.0
        self._max_active = max_active
        self._scripts = scripts
        self._words = SyntheticWords(words)
        self._lock = threading.Lock()  # guards the six after the condition
        self._has_work = threading.Condition(self._lock)
        self._live: set[int] = set()  # numbers of active and waiting requests
        self._cancelled: set[int] = set()  # those of them that end at the next step
        self._waiting: FairQueue[_Stream] = FairQueue()
        self._waiting_streams: dict[int, _Stream] = {}  # the same by number
        self._synthetic = SyntheticStreams(self._words)  # the active requests: these and the next
        self._replayed: list[_Stream] = []
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="scripted-engine", daemon=True)
        self._thread.start()

    def submit(self, number: int, request: GenerationRequest) -> None:
        check_supported(request, CAPABILITIES["scripted"])
        stream = _Stream(number, request, self._content_of(number, request))  # not under the lock: long prompts
        with self._lock:
            if self._closing.is_set():
                raise PipelineError(ErrorCode.ENGINE_UNAVAILABLE, "The engine is shutting down. Retry shortly.")
            self._live.add(number)
            self._waiting.add(stream)
            self._waiting_streams[number] = stream
            self._has_work.notify()

    def cancel(self, number: int) -> None:
        with self._lock:
            if number in self._live:
                self._cancelled.add(number)

    def stats(self) -> ExecutorStats:
        with self._lock:
            return ExecutorStats(self._active_count, len(self._waiting), {MAX_ACTIVE: self._max_active})

    def close(self) -> None:
        with self._lock:
            self._closing.set()
            self._has_work.notify()
        self._thread.join(timeout=_JOIN_TIMEOUT_S)

    @property
    def _active_count(self) -> int:
        return len(self._synthetic) + len(self._replayed)

    def _content_of(
        self, number: int, request: GenerationRequest
    ) -> SyntheticText | Iterator[RequestOutput | EngineStep]:
        script = find_script(self._scripts, request)
        if script is None:
            return self._words.text_for(request)
        if script.fault is Fault.REFUSES:
            raise RuntimeError("the script refuses a request with an unexpected error")
        return outputs_of(script, number, request, self._words.token_ids[0])

    # The engine thread

    def _run(self) -> None:
        try:
            self._make_steps()
        except Exception:  # noqa: BLE001 - without this thread no request would ever end
            _log.exception("the scripted engine failed; it accepts no more requests")
            self._closing.set()
            self._output.emit(ends_only([RequestEnd(number, error=internal_error()) for number in self._take_all()]))

    def _make_steps(self) -> None:
        next_step = time.monotonic()
        while self._wait_for_work():
            now = time.monotonic()
            if now < next_step and self._closing.wait(next_step - now):
                continue
            # A late step is not made up for: an engine that falls behind its pace does not burst afterwards.
            next_step = max(next_step + self._period_s, time.monotonic())
            for step in self._step():
                self._output.emit(step)
            if not self._period_s:
                time.sleep(0)  # lets submit and cancel take the lock

    def _wait_for_work(self) -> bool:
        """Waits for a request. Returns False after ending all requests when the executor is being closed."""
        with self._has_work:
            while not (self._live or self._closing.is_set()):
                self._has_work.wait()
            if not self._closing.is_set():
                return True
        self._output.emit(ends_only(_cancelled(self._take_all())))
        return False

    def _take_all(self) -> list[int]:
        """Removes all requests and returns their numbers."""
        with self._lock:
            numbers = sorted(self._live)
            self._live.clear()
            self._waiting.clear()
            self._waiting_streams.clear()
            self._synthetic.clear()
            self._replayed.clear()
        return numbers

    def _step(self) -> list[EngineStep]:
        """Makes one token for every active request. Returns the step, after the steps of scripted faults."""
        with self._lock:
            ended = self._remove_cancelled()
            begun = self._activate_waiting()
            step = self._synthetic.step()
            faults: list[EngineStep] = []
            if self._replayed:
                step = _joined(step, self._step_of_scripts(faults))
            if ended or begun:
                step = replace(step, ends=[*ended, *step.ends], begun=begun)
            self._live.difference_update(end.number for end in step.ends)
        return [*faults, step]

    def _remove_cancelled(self) -> list[RequestEnd]:
        """Removes the streams of cancelled requests, active or waiting, and returns their ends."""
        if not self._cancelled:
            return []
        cancelled, self._cancelled = self._cancelled, set()
        self._synthetic.remove(cancelled)
        self._replayed = [stream for stream in self._replayed if stream.number not in cancelled]
        for number in cancelled & self._waiting_streams.keys():
            self._waiting.remove(self._waiting_streams.pop(number))
        return _cancelled(sorted(cancelled))

    def _activate_waiting(self) -> dict[int, float]:
        """Gives free slots to requests that wait. Returns the time at which they begin, by number."""
        texts: list[tuple[int, SyntheticText]] = []
        begun: dict[int, float] = {}
        for _ in range(min(self._max_active - self._active_count, len(self._waiting))):
            stream = self._waiting.take()
            del self._waiting_streams[stream.number]
            begun[stream.number] = time.monotonic()
            if isinstance(stream.content, SyntheticText):
                texts.append((stream.number, stream.content))
            else:
                self._replayed.append(stream)
        self._synthetic.begin(texts)
        return begun

    def _step_of_scripts(self, faults: list[EngineStep]) -> EngineStep:
        """Advances the scripted requests. Adds steps that break the port's rules to `faults`."""
        builder = StepBuilder()
        remaining: list[_Stream] = []
        for stream in self._replayed:
            output = _advance(stream)
            if isinstance(output, EngineStep):
                faults.append(output)
            elif output is not None:
                builder.add(stream.number, *output)
            if not (isinstance(output, RequestOutput) and output.is_final):
                remaining.append(stream)
        self._replayed = remaining
        return builder.build()


def _advance(stream: _Stream) -> RequestOutput | EngineStep | None:
    assert not isinstance(stream.content, SyntheticText)
    try:
        return next(stream.content, None)
    except Exception:  # noqa: BLE001 - one request fails; the engine's thread serves the others
        _log.exception("a step failed")
        return RequestOutput(error=internal_error())


def _cancelled(numbers: Iterable[int]) -> list[RequestEnd]:
    return [RequestEnd(number, FinishReason.CANCELLED) for number in numbers]


def _joined(first: EngineStep, second: EngineStep) -> EngineStep:
    """Returns the output of two steps, which have no request in common, as one."""
    counts: IntArray | None = None
    if first.counts is not None or second.counts is not None:
        counts = np.concatenate((_counts(first), _counts(second)))
    return EngineStep(
        np.concatenate((first.numbers, second.numbers)),
        np.concatenate((first.token_ids, second.token_ids)),
        counts,
        [*first.ends, *second.ends],
    )


def _counts(step: EngineStep) -> IntArray:
    return np.ones(len(step.numbers), np.int64) if step.counts is None else step.counts
