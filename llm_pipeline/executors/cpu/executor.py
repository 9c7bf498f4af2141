"""The CPU executor: sends requests to the engine process, relays its steps, and restarts it when it dies.

When the engine process dies, its requests fail at once, and new ones are rejected until the next process is ready.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from llm_pipeline.engine_files.manifest import EngineManifest
from llm_pipeline.executors.cpu.engine.ipc import (
    AddRequest,
    CacheCounts,
    Cancel,
    DraftCounts,
    EngineSettings,
    Ready,
    StepOutput,
    StepReport,
)
from llm_pipeline.executors.cpu.engine_process import EngineProcess
from llm_pipeline.executors.cpu.watchdog import Watchdog
from llm_pipeline.executors.port import ExecutorStats, GuardedSink, OutputSink
from llm_pipeline.executors.step_builder import StepBuilder
from llm_pipeline.protocol.capabilities import CAPABILITIES, check_supported
from llm_pipeline.protocol.engine_metrics import KV_USED_SHARE, MAX_ACTIVE
from llm_pipeline.protocol.errors import ErrorCode, PipelineError, internal_error
from llm_pipeline.protocol.messages import (
    EngineStep,
    FinishReason,
    GenerationRequest,
    RequestEnd,
    RequestLogprobs,
    TextOptions,
    ends_only,
)
from llm_pipeline.runtime.settings import PipelineSettings
from llm_pipeline.runtime.subprocesses import RestartBackoff

_log = logging.getLogger(__name__)
_JOIN_TIMEOUT_S = 10.0
_RETRY_AFTER_S = 5.0
RESTART_DELAYS_S = (0.2, 1.0, 5.0, 15.0)  # after the first, second, ... death without a step in between


class CpuExecutor:
    """An Executor over the engine process.

    The constructor starts the first process and waits until it is ready; it raises EngineStartError if that fails.
    """

    def __init__(
        self,
        settings: PipelineSettings,
        manifest: EngineManifest,
        sink: OutputSink,
        *,
        start_process: Callable[[EngineSettings], EngineProcess] = EngineProcess,
        restart_delays_s: Sequence[float] = RESTART_DELAYS_S,
    ) -> None:
        self._output = GuardedSink(sink)
        self._limits = manifest.limits
        self._settings = EngineSettings.of(settings, manifest)
        self._start_process = start_process
        self._backoff = RestartBackoff(restart_delays_s)
        self._lock = threading.Lock()  # guards the next seven; never held during a send
        self._live: set[int] = set()  # numbers of requests
        self._active_count = 0
        self._progress_s = 0.0  # monotonic; of the last step, or of work for an engine that had none
        self._cache = CacheCounts()
        self._capacity = Ready(0, 0)
        self._drafts = DraftCounts()
        self._ready: EngineProcess | None = None  # the process, while it takes requests
        self._send_lock = threading.Lock()  # keeps a cancel after its submit; taken before _lock
        self._closing = threading.Event()
        self._process: EngineProcess  # the newest one, ready or loading
        self._ready = self._start()
        self._watchdog = Watchdog(settings.cpu_hang_timeout_s, lambda: bool(self._live), self._kill)
        self._thread = threading.Thread(target=self._supervise, args=(self._ready,), name="cpu-engine", daemon=True)
        self._thread.start()

    def submit(self, number: int, request: GenerationRequest) -> None:
        check_supported(request, CAPABILITIES["cpu"])
        self._check(request)
        if request.guide is not None and request.guide_address is None:
            _log.error("a guided request has no process that makes its masks")
            raise internal_error()
        # The engine process names requests by a key, and has no use for stop strings.
        message = AddRequest(replace(request, key=str(number), text_options=TextOptions()))
        with self._send_lock:
            with self._lock:
                process = self._ready
                if process is None:
                    raise _engine_unavailable()
                if not self._live:
                    self._watchdog.record_progress()
                    self._progress_s = time.monotonic()
                self._live.add(number)
            self._send(process, message)

    def cancel(self, number: int) -> None:
        with self._send_lock:
            with self._lock:
                process = self._ready if number in self._live else None
            if process is not None:
                self._send(process, Cancel(str(number)))

    def stats(self) -> ExecutorStats:
        with self._lock:
            active = min(self._active_count, len(self._live))
            stalled_s = time.monotonic() - self._progress_s if self._live and self._ready else 0.0
            gauges = self._gauges()
            return ExecutorStats(active, len(self._live) - active, gauges, stalled_s)

    def close(self) -> None:
        self._closing.set()
        self._watchdog.close()
        self._process.terminate()
        self._thread.join(timeout=_JOIN_TIMEOUT_S)
        self._process.reap()

    def _gauges(self) -> dict[str, float]:
        cache, capacity, settings = self._cache, self._capacity, self._settings
        used_blocks = round(cache.used_share * capacity.block_count)
        gauges: dict[str, float] = {
            MAX_ACTIVE: settings.max_active,
            KV_USED_SHARE: cache.used_share,
            "kv_cache_tokens_per_block": capacity.block_tokens,
            "kv_cache_max_blocks": capacity.block_count,
            "kv_cache_used_blocks": used_blocks,
            "kv_cache_free_blocks": capacity.block_count - used_blocks,
        }
        if settings.prefix_cache:
            gauges["prefix_cache_queried_tokens"] = cache.looked_up_tokens
            gauges["prefix_cache_hit_tokens"] = cache.reused_tokens
        if settings.max_draft_tokens:
            gauges["draft_tokens"] = self._drafts.drafted
            gauges["accepted_draft_tokens"] = self._drafts.accepted
        return gauges

    def _check(self, request: GenerationRequest) -> None:
        """Rejects requests that the engine can't compute: it does not check ids and lengths itself.

        Preprocess does, but clients of Triton can send to decode directly.
        """
        ids, limits = request.prompt_ids, self._limits
        fits = len(ids) + request.max_tokens <= limits.context_length
        min_tokens = 0 if request.return_prompt_logprobs else 1
        if not (ids and request.max_tokens >= min_tokens and fits and min(ids) >= 0 and max(ids) < limits.vocab_size):
            raise PipelineError(
                ErrorCode.VALUE_OUT_OF_RANGE,
                f"The prompt must not be empty, its token ids must be between 0 and {limits.vocab_size - 1}, and prompt"
                f" plus completion must be at most {limits.context_length} tokens.",
                param="prompt",
            )

    def _send(self, process: EngineProcess, message: AddRequest | Cancel) -> None:
        try:
            process.send(message)
        except OSError:
            # The process has died; the supervisor is about to read the end of the stream and to fail what is live.
            _log.warning("the engine process does not accept messages any more")

    def _kill(self) -> None:
        self._process.kill()

    def _start(self) -> EngineProcess:
        """Starts a process and waits until it is ready."""
        process = self._process = self._start_process(self._settings)
        if self._closing.is_set():  # `close` may have terminated the previous process instead of this one
            process.terminate()
        try:
            capacity = process.wait_until_ready()
        except BaseException:
            process.close_connection()
            process.reap()
            raise
        with self._lock:
            self._capacity = capacity
            self._cache, self._drafts = CacheCounts(), DraftCounts()  # of the new process
        return process

    # The supervisor thread

    def _supervise(self, process: EngineProcess) -> None:
        while True:
            if self._relay(process):
                self._backoff.reset()
            self._fail_live(process)
            if self._closing.is_set():
                return
            _log.error("the CPU engine process ended with status %s; restarting it", process.reap())
            restarted = None
            while restarted is None:
                if self._closing.wait(self._backoff.next_delay_s()):
                    return
                restarted = self._restart()
            process = restarted

    def _relay(self, process: EngineProcess) -> bool:
        """Passes steps to the sink until the process ends. Returns whether there were any."""
        has_worked = False
        while True:
            try:
                message = process.receive()
            except (EOFError, OSError):
                return has_worked
            except Exception:  # noqa: BLE001 - after an unreadable message the stream is unusable
                _log.exception("a message of the engine process can't be read")
                return has_worked
            if isinstance(message, StepReport):
                has_worked = True
                self._watchdog.record_progress()
                step = _engine_step(message.steps, message.begun)
                with self._lock:
                    self._progress_s = time.monotonic()
                    self._active_count = message.active_count
                    self._cache = message.cache
                    self._drafts = message.drafts
                    self._live.difference_update(end.number for end in step.ends)
                self._output.emit(step)

    def _fail_live(self, process: EngineProcess) -> None:
        with self._lock:
            self._ready = None
            live, self._live = self._live, set()
            self._active_count = 0
        with self._send_lock:  # a send to a dead process fails at once, so this does not wait
            process.close_connection()
        if self._closing.is_set():
            self._output.emit(ends_only([RequestEnd(number, FinishReason.CANCELLED) for number in live]))
            return
        error = PipelineError(
            ErrorCode.ENGINE_UNAVAILABLE,
            "The engine stopped while processing this request and is restarting. Retry the request.",
            retry_after_s=_RETRY_AFTER_S,
        )
        self._output.emit(ends_only([RequestEnd(number, error=error) for number in live]))

    def _restart(self) -> EngineProcess | None:
        try:
            process = self._start()
        except Exception:  # noqa: BLE001 - the next attempt may succeed, and only this thread makes one
            if not self._closing.is_set():
                _log.exception("the CPU engine could not be restarted")
            return None
        with self._lock:
            self._ready = process
        return process


def _engine_step(outputs: Sequence[StepOutput], begun: dict[str, float] | None) -> EngineStep:
    builder = StepBuilder()
    if begun:
        builder.begun = {int(key): begun_s for key, begun_s in begun.items()}
    for output in outputs:
        logprobs = None
        if output.logprobs or output.prompt_logprobs is not None:
            logprobs = RequestLogprobs(output.logprobs, output.top_logprobs, output.prompt_logprobs)
        builder.add(int(output.key), output.token_ids, output.finish_reason, output.error, logprobs)
    return builder.build()


def _engine_unavailable() -> PipelineError:
    return PipelineError(
        ErrorCode.ENGINE_UNAVAILABLE, "The engine is starting. Retry shortly.", retry_after_s=_RETRY_AFTER_S
    )
