"""The TensorRT-LLM executor: live requests, the thread that awaits their responses, cancellation and fatal errors.

One awaiter thread takes all responses, reads the iteration stats and checks two timeouts. No single response can end
it: one that can't be handled fails its own request alone. An error that does end it is fatal to the engine: upstream's
`await_responses` raises, the GPU is unusable, or nothing makes progress (engine_health.py). Then all requests fail at
once with ENGINE_UNAVAILABLE, new ones are rejected, the log gets the reason, and the process exits soon after, because
a failed CUDA context can't be repaired inside its process and MPI can't be initialized twice. Whatever started Triton
restarts it (the launcher, or the orchestrator's restart policy).

Cancels are put off while the engine is silent, because upstream's call may then block with the GIL (watchdog.py).

Requests that the engine can't start soon wait here (admission.py), where tenants take turns. Upstream's own queue knows
priorities only.

Request ids are upstream's own, not the numbers of the executor port. `enqueue` and the entry into `_live` happen under
one lock, which the awaiter takes before it looks an id up, so that no response can arrive too early.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from llm_pipeline.executors.port import ExecutorStats, GuardedSink, OutputSink
from llm_pipeline.executors.step_builder import RequestOutput, StepBuilder
from llm_pipeline.executors.tensorrt_llm.admission import Admission, WaitingRequest
from llm_pipeline.executors.tensorrt_llm.engine import (
    Engine,
    EngineDownError,
    EngineResponse,
    FailureKind,
    InvalidValueError,
    QueueFullError,
)
from llm_pipeline.executors.tensorrt_llm.engine_health import EngineFatalError, EngineHealth
from llm_pipeline.executors.tensorrt_llm.error_classification import first_line
from llm_pipeline.executors.tensorrt_llm.request_limits import RequestLimits
from llm_pipeline.executors.tensorrt_llm.responses import (
    LiveRequest,
    queue_full,
    to_output,
    unavailable,
)
from llm_pipeline.executors.tensorrt_llm.watchdog import NoWatchdog, Watchdog
from llm_pipeline.protocol.engine_metrics import MAX_ACTIVE
from llm_pipeline.protocol.errors import ErrorCode, PipelineError, internal_error
from llm_pipeline.protocol.messages import FinishReason, GenerationRequest, RequestEnd, ends_only

_log = logging.getLogger(__name__)
_AWAIT_S = 0.05  # the period of the checks: upstream returns at once when a response comes
_STATS_PERIOD_S = 0.05  # the front end's numbers are to be at most 100 ms old
_EXIT_STATUS = 70  # EX_SOFTWARE
_SHUTTING_DOWN = "The engine is shutting down. Retry shortly."
_STOPPED = "The engine has stopped and is restarting. Retry the request."


@dataclass(frozen=True)
class Timeouts:
    """Limits for waiting on the engine, in seconds. 0 switches `hang_s` off."""

    cancel_s: float  # until a cancelled request is ended without upstream's response
    hang_s: float  # without a response or an iteration while requests are live
    silence_s: float = 2.0  # the same, until cancels are put off
    close_s: float = 3.0  # for cancelled requests to end when the executor is closed
    shutdown_s: float = 10.0  # for upstream's shutdown
    exit_s: float = 3.0  # between a fatal error and the end of the process, for decode to notify clients


def exit_immediately(status: int) -> None:
    """Ends the process without Python's clean-up, which would wait for threads that hang inside the dead engine."""
    os._exit(status)


class TensorRtLlmExecutor:
    """An Executor over a loaded engine, which decodes up to `max_batch_size` requests at once.

    `exit_process` ends the process after a fatal error of the engine, and `watchdog` if the awaiter can't run any more.
    """

    def __init__(
        self,
        engine: Engine,
        limits: RequestLimits,
        sink: OutputSink,
        *,
        max_batch_size: int,
        timeouts: Timeouts,
        exit_process: Callable[[int], None] = exit_immediately,
        watchdog: Watchdog | None = None,
    ) -> None:
        self._engine = engine
        self._limits = limits
        self._output = GuardedSink(sink)
        self._timeouts = timeouts
        self._exit_process = exit_process
        self._watchdog = watchdog or NoWatchdog()
        self._health = EngineHealth(timeouts.hang_s, timeouts.silence_s)
        self._late_cancels: deque[int] = deque()  # upstream's request ids, for when the engine makes progress
        self._lock = threading.Lock()  # guards the next six
        self._admission = Admission(max_batch_size)
        self._live: dict[int, LiveRequest] = {}  # the engine's, by upstream's request id
        self._ids: dict[int, int] = {}  # upstream's request ids by number
        self._started_count = 0  # live requests that have a token
        self._started_total = 0  # requests that have ever got one
        self._reject_message: str | None = None  # set: no more requests are accepted
        self._closing = threading.Event()
        self._is_dead = False
        self._fatal_message: str | None = None  # from a failed enqueue, for the awaiter
        self._upstream_active = 0
        self._gauges: Mapping[str, float] = {MAX_ACTIVE: max_batch_size}
        self._stats_at = 0.0
        self._has_logged_stats_error = False
        self._thread = threading.Thread(target=self._run, name="tensorrt-llm-awaiter", daemon=True)
        self._thread.start()

    def submit(self, number: int, request: GenerationRequest) -> None:
        self._limits.check(request)
        waiting = WaitingRequest(number, request, self._prepare(request))  # not under the lock: may take milliseconds
        with self._lock:
            if self._reject_message is not None:
                raise unavailable(self._reject_message)
            is_next = not len(self._admission)
            if not (is_next and self._has_room() and self._start(waiting)):
                self._admission.add(waiting)

    def cancel(self, number: int) -> None:
        with self._lock:
            if self._admission.cancel(number):
                return  # the awaiter ends it
            request_id = self._ids.get(number)
            if request_id is None or self._live[request_id].is_cancelled:
                return
            self._live[request_id].cancel()
        self._cancel_upstream(request_id)

    def stats(self) -> ExecutorStats:
        with self._lock:
            live, started, waiting = len(self._live), self._started_count, len(self._admission)
        # Upstream's count lags: it is from its newest iteration, and an idle engine has none.
        active = max(started, min(self._upstream_active, live))
        return ExecutorStats(active, live - active + waiting, self._gauges)

    def close(self) -> None:
        with self._lock:
            is_first = not self._closing.is_set()
            self._reject_message = self._reject_message or _SHUTTING_DOWN
            self._closing.set()
            ids = [request_id for request_id, live in self._live.items() if not live.is_cancelled]
            for request_id in ids:
                self._live[request_id].cancel()
        for request_id in ids:
            self._cancel_upstream(request_id)
        self._thread.join(timeout=2 * self._timeouts.close_s)
        if self._thread.is_alive():
            _log.warning("the engine does not return from waiting for responses; ending its requests without it")
            self._cancel_all()
        if is_first and not self._is_dead:
            self._shut_down()

    def _prepare(self, request: GenerationRequest) -> object:
        try:
            return self._engine.prepare(request)
        except InvalidValueError as error:
            _log.warning("the engine rejected a value of a request: %s", error)
            raise PipelineError(
                ErrorCode.VALUE_OUT_OF_RANGE,
                "The engine rejected a sampling parameter of this request. Check temperature and the penalties.",
            ) from error

    def _has_room(self) -> bool:
        return self._admission.has_room(in_engine=len(self._live), unstarted=len(self._live) - self._started_count)

    def _start(self, waiting: WaitingRequest) -> bool:
        """Hands a request to the engine. Returns False if the engine's own queue is full.

        Raises PipelineError: 503 if the engine is down, 429 if its queue is full although none of ours is in it.
        """
        try:
            request_id = self._engine.enqueue(waiting.prepared)
        except QueueFullError as error:
            if len(self._live) > self._started_count:
                return False
            raise queue_full() from error  # it must not keep the first place, maybe without end
        except EngineDownError as error:
            self._fatal_message = first_line(str(error))  # the awaiter raises it
            raise unavailable(_STOPPED) from error
        if not self._live:
            self._health.on_progress()
        self._live[request_id] = LiveRequest(waiting.number, waiting.request)
        self._ids[waiting.number] = request_id
        return True

    def _cancel_upstream(self, request_id: int) -> None:
        if self._health.is_silent():
            self._late_cancels.append(request_id)
            return
        try:
            self._engine.cancel(request_id)
        except Exception:  # noqa: BLE001 - upstream's; the request ends by itself or after the cancel timeout
            _log.exception("the engine failed to cancel a request")

    def _shut_down(self) -> None:
        """On its own thread: upstream waits for its requests, and for other ranks, without a limit of its own."""
        thread = threading.Thread(target=self._shut_down_upstream, name="tensorrt-llm-shutdown", daemon=True)
        thread.start()
        thread.join(timeout=self._timeouts.shutdown_s)
        if thread.is_alive():
            _log.warning(
                "the engine did not shut down within %.0f s; it ends with the process", self._timeouts.shutdown_s
            )

    def _shut_down_upstream(self) -> None:
        try:
            self._engine.shutdown()
        except Exception:  # noqa: BLE001 - upstream's; the process is about to end
            _log.exception("the engine failed to shut down")

    # The awaiter thread

    def _run(self) -> None:
        try:
            self._await_until_closed()
        except EngineFatalError as error:
            self._fail_all_and_exit(str(error))
        except Exception as error:  # noqa: BLE001 - without this thread no request would ever end
            _log.exception("the engine's responses can't be awaited any more")
            self._fail_all_and_exit(f"{type(error).__name__}: {error}")
        else:
            self._watchdog.stop()
            self._cancel_all()

    def _await_until_closed(self) -> None:
        deadline: float | None = None
        while True:
            self._watchdog.feed()
            if self._closing.is_set():
                deadline = deadline or time.monotonic() + self._timeouts.close_s
                if not self._live or time.monotonic() > deadline:
                    return
            responses = self._engine.await_responses(_AWAIT_S)
            if responses:
                self._health.on_progress()
                self._relay(responses)
            if self._fatal_message is not None:
                raise EngineFatalError(self._fatal_message)
            if self._admission.needs_attention:
                self._advance_queue()
            self._read_stats()
            while self._late_cancels and not self._health.is_silent():
                self._cancel_upstream(self._late_cancels.popleft())
            self._check_timeouts()

    def _advance_queue(self) -> None:
        """Hands waiting requests to the engine, in their order, and ends those that were cancelled or are too late."""
        with self._lock:
            ends = self._admission.take_ended()
            while not self._closing.is_set() and (waiting := self._admission.first) is not None and self._has_room():
                try:
                    if not self._start(self._with_time_left(waiting)):
                        break
                except PipelineError as error:
                    if self._fatal_message is not None:
                        break  # the engine is down: the request fails with all the others
                    ends.append(RequestEnd(waiting.number, error=error))
                except Exception:  # noqa: BLE001 - upstream refuses this request for an unknown reason
                    _log.exception("the engine failed to accept a request")
                    ends.append(RequestEnd(waiting.number, error=internal_error()))
                self._admission.take()
        self._output.emit(ends_only(ends))

    def _with_time_left(self, waiting: WaitingRequest) -> WaitingRequest:
        """Returns the request with the rest of its time limit: upstream counts from when it gets the request."""
        if waiting.deadline is None:
            return waiting
        left_s = max(waiting.deadline - time.monotonic(), 0.001)
        prepared = self._engine.prepare(replace(waiting.request, time_limit_s=left_s))
        return WaitingRequest(waiting.number, waiting.request, prepared)

    def _relay(self, responses: list[EngineResponse]) -> None:
        """Passes the output of all responses to the sink as one step."""
        builder, must_cancel = StepBuilder(), list[int]()
        fatal: str | None = None
        may_be_a_guides_fault = False
        with self._lock:
            had_tokens = self._started_total
            for response in responses:
                live = self._live.get(response.request_id)
                if live is None:
                    continue  # ended after the cancel timeout
                may_be_a_guides_fault |= response.error is not None and live.may_compile_guide
                if response.failure is FailureKind.ENGINE:
                    fatal = response.error
                    continue  # fails with all the others
                output = self._output_of(live, response, builder)
                if response.must_cancel:
                    must_cancel.append(response.request_id)
                if output is None:
                    continue
                builder.add(live.number, *output)
                if output.is_final:
                    self._forget(response.request_id)
            self._admission.on_round(
                started=self._started_total - had_tokens, unstarted=len(self._live) - self._started_count
            )
        self._output.emit(builder.build())
        for request_id in must_cancel:
            self._cancel_upstream(request_id)
        if fatal is not None:
            _log.error("fatal error of the engine: %s", fatal)
            raise EngineFatalError(first_line(fatal))
        self._health.on_round(responses, may_be_a_guides_fault=may_be_a_guides_fault)

    def _output_of(self, live: LiveRequest, response: EngineResponse, step: StepBuilder) -> RequestOutput | None:
        had_no_token = live.token_count == 0
        try:
            output = to_output(live, response)
        except Exception:  # noqa: BLE001 - it fails its own request
            _log.exception("a response could not be handled")
            output = RequestOutput(error=internal_error())
        if had_no_token and live.token_count > 0:
            self._started_count += 1
            self._started_total += 1
            step.begun[live.number] = live.begun_s
        return output

    def _forget(self, request_id: int) -> None:
        live = self._live.pop(request_id)
        del self._ids[live.number]
        self._started_count -= live.token_count > 0

    def _read_stats(self) -> None:
        now = time.monotonic()
        if now - self._stats_at < _STATS_PERIOD_S:
            return
        self._stats_at = now
        try:
            stats = self._engine.newest_stats()
        except Exception:  # noqa: BLE001 - statistics must not fail requests
            if not self._has_logged_stats_error:  # else the same line ten times a second
                _log.exception("the engine's statistics can't be read; its gauges are stale")
            self._has_logged_stats_error, stats = True, None
        if stats is None:
            return
        self._health.on_progress()
        self._limits = self._limits.with_kv_cache(stats.kv_cache_tokens)
        self._upstream_active = stats.active_requests
        self._gauges = {**self._gauges, **stats.gauges}

    def _check_timeouts(self) -> None:
        now, timeouts = time.monotonic(), self._timeouts
        with self._lock:
            overdue = [
                request_id
                for request_id, live in self._live.items()
                if live.is_cancelled and now - live.cancelled_at > timeouts.cancel_s
            ]
            ends = [RequestEnd(self._live[request_id].number, FinishReason.CANCELLED) for request_id in overdue]
            for request_id in overdue:
                self._forget(request_id)
            is_busy = bool(self._live or len(self._admission))
        if overdue:
            _log.warning("%d cancelled requests did not end within %.0f s", len(overdue), timeouts.cancel_s)
            self._output.emit(ends_only(ends))
        self._health.check_hang(is_busy=is_busy)

    def _cancel_all(self) -> None:
        with self._lock:
            self._reject_message = self._reject_message or _SHUTTING_DOWN
            numbers = self._forget_all()
        self._output.emit(ends_only([RequestEnd(number, FinishReason.CANCELLED) for number in numbers]))

    def _forget_all(self) -> list[int]:
        numbers = [*self._ids, *self._admission.take_all()]
        self._live.clear()
        self._ids.clear()
        self._started_count = 0
        return numbers

    def _fail_all_and_exit(self, reason: str) -> None:
        """Fails all requests at once and ends the process soon. While closing, a fatal error only ends the requests."""
        if self._closing.is_set():
            _log.warning("the engine died while it was closing: %s", reason)
            self._is_dead = True
            self._watchdog.stop()
            self._cancel_all()
            return
        with self._lock:
            self._is_dead = True
            self._reject_message = _STOPPED
            numbers = self._forget_all()
        message = "the engine is dead: %s; %d requests fail, and this process ends in %.0f s"
        _log.error(message, reason, len(numbers), self._timeouts.exit_s)
        self._output.emit(ends_only([RequestEnd(number, error=unavailable(_STOPPED)) for number in numbers]))
        if not self._closing.wait(self._timeouts.exit_s):
            self._exit_process(_EXIT_STATUS)
