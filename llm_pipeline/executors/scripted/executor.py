"""An executor without a model: replays or synthesizes tokens at a set pace. For tests, load tests and demonstrations.

It behaves like an engine with in-flight batching: one thread makes one token for every active request in each step,
requests beyond `max_active` wait in order of their priority, and a cancelled one ends at the next step. A stop token
ends a request, unless min_tokens forbids it: then it is passed on like any other token.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence

from llm_pipeline.executors.port import ExecutorStats, GuardedSink, OutputSink, duplicate_request
from llm_pipeline.executors.scripted.faults import Fault, faulty_steps
from llm_pipeline.executors.scripted.scripts import Script, find_script, replay, synthesize, until_stop_token
from llm_pipeline.executors.waiting_queue import insert_by_urgency
from llm_pipeline.protocol.capabilities import CAPABILITIES, check_supported
from llm_pipeline.protocol.errors import ErrorCode, PipelineError, internal_error
from llm_pipeline.protocol.messages import FinishReason, GenerationRequest, StepOutput

_log = logging.getLogger(__name__)
_JOIN_TIMEOUT_S = 5.0


class _Stream:
    """One request and its remaining steps."""

    __slots__ = ("is_cancelled", "request", "steps")

    def __init__(self, request: GenerationRequest, steps: Iterator[StepOutput]) -> None:
        self.request = request
        self.steps = steps
        self.is_cancelled = False


class ScriptedExecutor:
    """An Executor that takes its tokens from `scripts`, or else from `words`, which are token ids.

    `steps_per_s` is the pace of each stream in tokens per second; 0 is as fast as possible.
    """

    def __init__(
        self, scripts: Sequence[Script], words: Sequence[int], sink: OutputSink, *, steps_per_s: float, max_active: int
    ) -> None:
        self._output = GuardedSink(sink)
        self._period_s = 1 / steps_per_s if steps_per_s else 0.0
        self._max_active = max_active
        self._scripts = scripts
        self._words = words
        self._word_set = frozenset(words)
        self._lock = threading.Lock()
        self._has_work = threading.Condition(self._lock)
        self._streams: dict[str, _Stream] = {}
        self._active: list[_Stream] = []
        self._waiting: deque[_Stream] = deque()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="scripted-engine", daemon=True)
        self._thread.start()

    def submit(self, request: GenerationRequest) -> None:
        check_supported(request, CAPABILITIES["scripted"])
        with self._lock:
            if self._closing.is_set():
                raise PipelineError(ErrorCode.ENGINE_UNAVAILABLE, "The engine is shutting down. Retry shortly.")
            if request.key in self._streams:
                raise duplicate_request()
            script = find_script(self._scripts, request)
            if script is not None and script.fault is Fault.REFUSES:
                raise RuntimeError("the script refuses a request with an unexpected error")
            stream = _Stream(request, self._steps_of(request, script))
            self._streams[request.key] = stream
            insert_by_urgency(self._waiting, stream)
            self._has_work.notify()

    def cancel(self, key: str) -> None:
        with self._lock:
            if stream := self._streams.get(key):
                stream.is_cancelled = True
                self._has_work.notify()

    def stats(self) -> ExecutorStats:
        with self._lock:
            return ExecutorStats(len(self._active), len(self._waiting))

    def close(self) -> None:
        with self._lock:
            self._closing.set()
            self._has_work.notify()
        self._thread.join(timeout=_JOIN_TIMEOUT_S)

    def _steps_of(self, request: GenerationRequest, script: Script | None) -> Iterator[StepOutput]:
        if script is not None and script.fault is not None:
            return faulty_steps(script.fault, request, script.token_ids, self._words[0], self._output.emit)
        if script is not None:
            return until_stop_token(request, replay(request, script))
        steps = synthesize(request, self._words)
        may_stop = not self._word_set.isdisjoint(request.stop_token_ids)
        return until_stop_token(request, steps) if may_stop else steps

    # The engine thread

    def _run(self) -> None:
        next_step = time.monotonic()
        while self._wait_for_work():
            now = time.monotonic()
            if now < next_step and self._closing.wait(next_step - now):
                continue
            # A late step is not made up for: an engine that falls behind its pace does not burst afterwards.
            next_step = max(next_step + self._period_s, time.monotonic())
            self._output.emit(self._step())
            if not self._period_s:
                time.sleep(0)  # lets submit and cancel take the lock

    def _wait_for_work(self) -> bool:
        """Waits for a request. Returns False after ending all requests when the executor is being closed."""
        with self._has_work:
            while not (self._active or self._waiting or self._closing.is_set()):
                self._has_work.wait()
            if not self._closing.is_set():
                return True
            ended = [StepOutput(key, finish_reason=FinishReason.CANCELLED) for key in self._streams]
            self._streams.clear()
            self._active.clear()
            self._waiting.clear()
        self._output.emit(ended)
        return False

    def _step(self) -> list[StepOutput]:
        with self._lock:
            while self._waiting and len(self._active) < self._max_active:
                self._active.append(self._waiting.popleft())
            # A waiting request that is cancelled ends now, not when it would have become active.
            cancelled = [stream for stream in self._waiting if stream.is_cancelled]
            if cancelled:
                self._waiting = deque(stream for stream in self._waiting if not stream.is_cancelled)
            steps = [self._advance(stream) for stream in self._active]
            steps += [StepOutput(stream.request.key, finish_reason=FinishReason.CANCELLED) for stream in cancelled]
            for step in steps:
                if step is not None and step.is_final:
                    del self._streams[step.key]
            self._active = [
                stream for stream, step in zip(self._active, steps, strict=False) if step is None or not step.is_final
            ]
        return [step for step in steps if step is not None]

    def _advance(self, stream: _Stream) -> StepOutput | None:
        if stream.is_cancelled:
            return StepOutput(stream.request.key, finish_reason=FinishReason.CANCELLED)
        try:
            return next(stream.steps, None)
        except Exception:  # noqa: BLE001 - one request fails; the engine's thread serves the others
            _log.exception("a step failed")
            return StepOutput(stream.request.key, error=internal_error())
