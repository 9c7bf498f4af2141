"""The TensorRT-LLM executor: requests in flight, the thread that awaits their responses, cancelling, and death.

One awaiter thread takes all responses, reads the iteration stats and watches two clocks. Nothing that one response
holds can end it: what can't be handled fails that request alone. What does end it (upstream's `await_responses` raises,
an error that leaves the GPU unusable, no sign of life) is the death of the engine: all requests fail at once with
ENGINE_UNAVAILABLE, new ones are refused, the log says why, and the process exits soon after, because a CUDA context
that has failed can't be mended inside its process and MPI can't be initialised twice. Whoever started Triton starts it
again (launcher/local/stub_watch.py, or the orchestrator's restart policy).

Request ids are upstream's own; a client's names never meet them. `enqueue` and the entry into `_live` happen under one
lock, which the awaiter takes before it looks an id up, so that no response can arrive too early.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Mapping

from llm_pipeline.executors.port import ExecutorStats, OutputSink, duplicate_request
from llm_pipeline.executors.tensorrt_llm.admission import RequestLimits
from llm_pipeline.executors.tensorrt_llm.engine import (
    BadValueError,
    Engine,
    EngineDownError,
    EngineResponse,
    Failure,
    QueueFullError,
)
from llm_pipeline.executors.tensorrt_llm.error_classification import headline
from llm_pipeline.executors.tensorrt_llm.steps import LiveRequest, make_step, queue_full, unavailable
from llm_pipeline.protocol.errors import ErrorCode, PipelineError, internal_error
from llm_pipeline.protocol.messages import FinishReason, GenerationRequest, StepOutput

_log = logging.getLogger(__name__)
_AWAIT_S = 0.05  # upstream wakes up at once when a response comes; this only bounds the clocks' ticks
_STATS_PERIOD_S = 0.1
_GAUGES_PERIOD_S = 1.0  # showing one costs Triton's stub a handshake
_CLOSE_LIMIT_S = 3.0  # for cancelled requests to end
_SHUTDOWN_LIMIT_S = 10.0
_FAILED_ROUNDS_LIMIT = 8  # assumption: more than one client's bad luck; a warm-up that works sets the count back
_EXIT_AFTER_S = 3.0  # time for decode to tell the clients
_EXIT_STATUS = 70  # EX_SOFTWARE
_SHUTTING_DOWN = "The engine is shutting down. Retry shortly."
_STOPPED = "The engine has stopped. It is being started again; retry the request."


class _EngineDeath(Exception):  # noqa: N818 - it is an event that unwinds the awaiter
    """The engine is dead; the message says why."""


class TensorRtLlmExecutor:
    """An Executor over a loaded engine. See the module's docstring."""

    def __init__(
        self,
        engine: Engine,
        admission: RequestLimits,
        sink: OutputSink,
        *,
        cancel_limit_s: float,
        hang_limit_s: float,
    ) -> None:
        self._engine = engine
        self._admission = admission
        self._sink = sink
        self._cancel_limit_s = cancel_limit_s
        self._hang_limit_s = hang_limit_s
        self._lock = threading.Lock()  # guards the four below
        self._live: dict[int, LiveRequest] = {}
        self._ids: dict[str, int] = {}
        self._started_count = 0  # of the live ones, those that have a token
        self._refusal: str | None = None  # why no more requests are taken
        self._closing = threading.Event()
        self._is_dead = False
        self._down_words: str | None = None  # what the engine said when it took a request no more
        self._upstream_active = 0
        self._gauges: Mapping[str, float] = {}
        self._stats_at = self._gauges_at = 0.0
        self._has_stats_failed = False
        self._failed_rounds = 0
        self._alive_at = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="tensorrt-llm-awaiter", daemon=True)
        self._thread.start()

    def submit(self, request: GenerationRequest) -> None:
        self._admission.check(request)
        prepared = self._prepare(request)  # not under the lock: long prompts take milliseconds
        with self._lock:
            if self._refusal is not None:
                raise unavailable(self._refusal)
            if request.key in self._ids:  # decode may have ended a request that upstream has not
                raise duplicate_request()
            request_id = self._enqueue(prepared)
            if not self._live:
                self._alive_at = time.monotonic()  # an idle engine owes no sign of life
            self._live[request_id] = LiveRequest(request)
            self._ids[request.key] = request_id

    def cancel(self, key: str) -> None:
        with self._lock:
            request_id = self._ids.get(key)
            if request_id is None or self._live[request_id].is_cancelled:
                return
            self._live[request_id].cancel()
        self._cancel_upstream(request_id)

    def stats(self) -> ExecutorStats:
        with self._lock:
            live, started = len(self._live), self._started_count
        # Upstream's count is of its newest iteration: it lags behind, and an idle engine makes none.
        active = max(started, min(self._upstream_active, live))
        return ExecutorStats(active, live - active, self._gauges)

    def close(self) -> None:
        with self._lock:
            is_first = not self._closing.is_set()
            self._refusal = self._refusal or _SHUTTING_DOWN
            self._closing.set()
            ids = [request_id for request_id, live in self._live.items() if not live.is_cancelled]
            for request_id in ids:
                self._live[request_id].cancel()
        for request_id in ids:
            self._cancel_upstream(request_id)
        self._thread.join(timeout=2 * _CLOSE_LIMIT_S)
        if self._thread.is_alive():
            _log.warning("the engine does not give its responses back; its requests are ended without it")
            self._end_all()
        if is_first and not self._is_dead:
            self._shut_down()

    def _prepare(self, request: GenerationRequest) -> object:
        try:
            return self._engine.prepare(request)
        except BadValueError as error:
            _log.warning("the engine refuses a value of a request: %s", error)
            raise PipelineError(
                ErrorCode.VALUE_OUT_OF_RANGE,
                "The engine refuses a sampling value of this request. Check temperature, the penalties and the limits.",
            ) from error

    def _enqueue(self, prepared: object) -> int:
        try:
            return self._engine.enqueue(prepared)
        except QueueFullError as error:
            raise queue_full() from error
        except EngineDownError as error:
            self._down_words = headline(str(error))  # the awaiter takes it from here
            raise unavailable(_STOPPED) from error

    def _cancel_upstream(self, request_id: int) -> None:
        try:
            self._engine.cancel(request_id)
        except Exception:  # noqa: BLE001 - upstream's; the request ends by itself or by its limit
            _log.exception("the engine failed to cancel a request")

    def _shut_down(self) -> None:
        """In a thread: upstream waits for its requests, and for other ranks, without a limit of its own."""
        thread = threading.Thread(target=self._shut_down_upstream, name="tensorrt-llm-shutdown", daemon=True)
        thread.start()
        thread.join(timeout=_SHUTDOWN_LIMIT_S)
        if thread.is_alive():
            _log.warning(
                "the engine did not shut down within %.0f s and is left to the end of the process", _SHUTDOWN_LIMIT_S
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
        except _EngineDeath as death:
            self._die(str(death))
        except Exception as error:  # noqa: BLE001 - there is no other way out of this thread than dying aloud
            _log.exception("the engine's responses can't be awaited any more")
            self._die(f"{type(error).__name__}: {error}")
        else:
            self._end_all()

    def _await_until_closed(self) -> None:
        deadline: float | None = None
        while True:
            if self._closing.is_set():
                deadline = deadline or time.monotonic() + _CLOSE_LIMIT_S
                if not self._live or time.monotonic() > deadline:
                    return
            responses = self._engine.await_responses(_AWAIT_S)
            if responses:
                self._alive_at = time.monotonic()
                self._relay(responses)
            if self._down_words is not None:
                raise _EngineDeath(self._down_words)
            self._read_stats()
            self._watch_clocks()

    def _relay(self, responses: list[EngineResponse]) -> None:
        """Steps of all responses in one call of the sink."""
        steps: list[StepOutput] = []
        unread: list[int] = []
        deadly: str | None = None
        with self._lock:
            for response in responses:
                live = self._live.get(response.request_id)
                if live is None:
                    continue  # given up after the cancel limit
                if response.failure is Failure.ENGINE:
                    deadly = response.error
                    continue  # fails with all the others
                step = self._make_step(live, response)
                if response.may_go_on:
                    unread.append(response.request_id)
                if step is None:
                    continue
                steps.append(step)
                if step.is_final:
                    self._forget(response.request_id)
        self._hand_over(steps)
        for request_id in unread:
            self._cancel_upstream(request_id)
        if deadly is not None:
            _log.error("the engine says: %s", deadly)
            raise _EngineDeath(headline(deadly))
        self._watch_failures(responses)

    def _watch_failures(self, responses: list[EngineResponse]) -> None:
        """An engine that fails everybody is dead, whatever it says: upstream itself goes on after each failed step."""
        if any(response.error is None for response in responses):
            self._failed_rounds = 0
        elif any(response.failure is Failure.UNKNOWN and not response.may_go_on for response in responses):
            self._failed_rounds += 1
        if self._failed_rounds >= _FAILED_ROUNDS_LIMIT:
            raise _EngineDeath(f"the last {self._failed_rounds} steps with an answer all failed, see above")

    def _make_step(self, live: LiveRequest, response: EngineResponse) -> StepOutput | None:
        had_none = live.token_count == 0
        try:
            step = make_step(live, response)
        except Exception:  # noqa: BLE001 - it fails its own request
            _log.exception("a response could not be handled")
            step = StepOutput(live.key, error=internal_error())
        self._started_count += had_none and live.token_count > 0
        return step

    def _forget(self, request_id: int) -> None:
        live = self._live.pop(request_id)
        if self._ids.get(live.key) == request_id:
            del self._ids[live.key]
        self._started_count -= live.token_count > 0

    def _hand_over(self, steps: list[StepOutput]) -> None:
        if not steps:
            return
        try:
            self._sink(steps)
        except Exception:  # noqa: BLE001 - a bug of whoever takes the steps must not end everybody's
            _log.exception("steps could not be handed over")

    def _read_stats(self) -> None:
        now = time.monotonic()
        if now - self._stats_at < _STATS_PERIOD_S:
            return
        self._stats_at = now
        try:
            stats = self._engine.newest_stats()
        except Exception:  # noqa: BLE001 - statistics are not worth a request
            if not self._has_stats_failed:  # each further time would be the same line, ten times a second
                _log.exception("the engine's statistics can't be read; its gauges stand still")
            self._has_stats_failed = True
            return
        if stats is None:
            return
        self._alive_at = now
        self._upstream_active = stats.active_requests
        if now - self._gauges_at >= _GAUGES_PERIOD_S:
            self._gauges, self._gauges_at = stats.gauges, now

    def _watch_clocks(self) -> None:
        now = time.monotonic()
        with self._lock:
            overdue = [
                request_id
                for request_id, live in self._live.items()
                if live.is_cancelled and now - live.cancelled_at > self._cancel_limit_s
            ]
            steps = [
                StepOutput(self._live[request_id].key, finish_reason=FinishReason.CANCELLED) for request_id in overdue
            ]
            for request_id in overdue:
                self._forget(request_id)
            is_busy = bool(self._live)
        if overdue:
            _log.warning("%d cancelled requests did not end within %.0f s", len(overdue), self._cancel_limit_s)
            self._hand_over(steps)
        if is_busy and self._hang_limit_s and now - self._alive_at > self._hang_limit_s:
            raise _EngineDeath(
                f"no response and no iteration for {self._hang_limit_s:.0f} s while requests are running"
            )

    def _end_all(self) -> None:
        with self._lock:
            self._refusal = self._refusal or _SHUTTING_DOWN
            keys = self._forget_all()
        self._hand_over([StepOutput(key, finish_reason=FinishReason.CANCELLED) for key in keys])

    def _forget_all(self) -> list[str]:
        keys = list(self._ids)
        self._live.clear()
        self._ids.clear()
        self._started_count = 0
        return keys

    def _die(self, reason: str) -> None:
        """Fail everything at once and end the process soon. A death while closing is only the end."""
        if self._closing.is_set():
            _log.warning("the engine died while it was closing: %s", reason)
            self._is_dead = True
            self._end_all()
            return
        with self._lock:
            self._is_dead = True
            self._refusal = _STOPPED
            keys = self._forget_all()
        text = "the engine is dead: %s; %d requests fail with it, and this process ends in %.0f s"
        _log.error(text, reason, len(keys), _EXIT_AFTER_S)
        self._hand_over([StepOutput(key, error=unavailable(_STOPPED)) for key in keys])
        if not self._closing.wait(_EXIT_AFTER_S):
            _end_process(_EXIT_STATUS)


def _end_process(status: int) -> None:
    """Without Python's clean-up, which would wait for threads that hang inside the dead engine."""
    os._exit(status)
