"""The embedded CPU engine seen from decode: starts the engine process, watches it, and starts it again when it dies.

A dead engine fails the requests it had, at once, and refuses new ones until its successor is loaded.
"""

from __future__ import annotations

import logging
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection

from llm_pipeline.engine_files.manifest import EngineManifest
from llm_pipeline.executors.cpu.engine.ipc import (
    AddRequest,
    CacheCounts,
    Cancel,
    EngineSettings,
    EngineStep,
    LoadFailed,
    Ready,
    StepReport,
)
from llm_pipeline.executors.cpu.engine.watchdog import Watchdog
from llm_pipeline.executors.port import ExecutorStats, OutputSink, duplicate_request
from llm_pipeline.protocol.capabilities import CAPABILITIES, check_supported
from llm_pipeline.protocol.errors import ErrorCode, PipelineError, internal_error
from llm_pipeline.protocol.messages import GUIDE_PARAM, FinishReason, GenerationRequest, StepOutput, TextOptions
from llm_pipeline.runtime.settings import PipelineSettings

_log = logging.getLogger(__name__)
_LOAD_LIMIT_S = 180.0
_STOP_LIMIT_S = 5.0
_RESTART_PAUSES_S = (0.2, 1.0, 5.0, 15.0)  # after the first, second, ... death without a token in between
_RETRY_AFTER_S = 5.0
_REASONS = {reason.value: reason for reason in FinishReason}


class EngineStartError(Exception):
    """The engine process could not load the engine; the message says why."""


class CpuExecutor:
    """An Executor over the engine process. The first load happens in the constructor and raises EngineStartError."""

    def __init__(self, settings: PipelineSettings, manifest: EngineManifest, sink: OutputSink) -> None:
        manifest.check_files(settings.engine_dir)
        self._sink = sink
        self._limits = manifest.limits
        self._settings = EngineSettings.of(settings, manifest)
        self._lock = threading.Lock()  # guards what follows; never held while something is sent
        self._send_lock = threading.Lock()  # keeps a cancel behind its submit; taken before _lock
        self._live: set[str] = set()
        self._active_count = 0
        self._cache = CacheCounts()
        self._connection: Connection | None = None
        self._closing = threading.Event()
        self._process: subprocess.Popen[bytes]  # the one that runs or loads
        connection = self._start()
        self._connection = connection
        self._hang_watch = Watchdog(settings.cpu_hang_timeout_s, lambda: bool(self._live), self._kill)
        self._thread = threading.Thread(target=self._supervise, args=(connection,), name="cpu-engine", daemon=True)
        self._thread.start()

    def submit(self, request: GenerationRequest) -> None:
        check_supported(request, CAPABILITIES["cpu"])
        self._check(request)
        message = AddRequest(replace(request, text_options=TextOptions()))  # the engine has no use for stop strings
        with self._send_lock:
            with self._lock:
                connection = self._connection
                if connection is None:
                    raise _engine_unavailable()
                if request.key in self._live:  # decode may have ended a request that the engine has not
                    raise duplicate_request()
                if not self._live:
                    self._hang_watch.sign_of_life()
                self._live.add(request.key)
            self._send(connection, message)

    def _kill(self) -> None:
        self._process.kill()

    def _check(self, request: GenerationRequest) -> None:
        """A request that came past preprocess must not take the engine down: it believes every id and length."""
        ids, limits = request.prompt_ids, self._limits
        is_short = len(ids) + request.max_tokens <= limits.context_length
        least = 0 if request.return_prompt_logprobs else 1
        if not (ids and request.max_tokens >= least and is_short and min(ids) >= 0 and max(ids) < limits.vocab_size):
            raise PipelineError(
                ErrorCode.VALUE_OUT_OF_RANGE,
                f"The engine takes ids from 0 to {limits.vocab_size - 1} and {limits.context_length} tokens in all.",
                param="prompt",
            )

    def cancel(self, key: str) -> None:
        with self._send_lock:
            with self._lock:
                connection = self._connection if key in self._live else None
            if connection is not None:
                self._send(connection, Cancel(key))

    def stats(self) -> ExecutorStats:
        with self._lock:
            active = min(self._active_count, len(self._live))
            return ExecutorStats(active, len(self._live) - active, _gauges(self._cache))

    def close(self) -> None:
        self._closing.set()
        self._hang_watch.close()
        self._process.terminate()
        self._thread.join(timeout=2 * _STOP_LIMIT_S)
        _reap(self._process)

    def _send(self, connection: Connection, message: AddRequest | Cancel) -> None:
        try:
            connection.send(message)
        except OSError:
            # The engine has died; the supervisor is about to read the end of the stream and to fail what is live.
            _log.warning("the engine process does not take messages any more")

    def _start(self) -> Connection:
        ours, theirs = socket.socketpair()
        with theirs:
            module = "llm_pipeline.executors.cpu.engine.process"
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, str(theirs.fileno()), self._settings.to_json()],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )
        if self._closing.is_set():  # `close` may have seen the process before this one
            self._process.terminate()
        connection = Connection(ours.detach())
        try:
            self._await_ready(connection)
        except BaseException:
            connection.close()
            _reap(self._process)
            raise
        return connection

    def _await_ready(self, connection: Connection) -> None:
        if not connection.poll(_LOAD_LIMIT_S):
            raise EngineStartError(f"The CPU engine did not load within {_LOAD_LIMIT_S:.0f} s.")
        try:
            message = connection.recv()
        except (EOFError, OSError) as error:
            raise EngineStartError("The CPU engine process died while it loaded; its log says why.") from error
        if isinstance(message, LoadFailed):
            raise EngineStartError(f"The CPU engine can't load: {message.reason}")
        if isinstance(message, Ready):
            _log.info("the CPU engine is ready; its KV cache holds %d tokens", message.capacity_tokens)

    def _supervise(self, connection: Connection) -> None:
        deaths = 0
        while True:
            if self._relay(connection):
                deaths = 0
            self._fail_live(connection)
            if self._closing.is_set():
                return
            _log.error("the CPU engine process ended with status %s; starting it again", _reap(self._process))
            restarted = None
            while restarted is None:
                if self._closing.wait(_RESTART_PAUSES_S[min(deaths, len(_RESTART_PAUSES_S) - 1)]):
                    return
                deaths += 1
                restarted = self._restart()
            connection = restarted

    def _relay(self, connection: Connection) -> bool:
        """Hand steps to the sink until the engine's end of the stream. True when at least one came."""
        has_worked = False
        while True:
            try:
                message = connection.recv()
            except (EOFError, OSError):
                return has_worked
            except Exception:  # noqa: BLE001 - whatever it is, that engine can't be listened to any more
                _log.exception("a message of the engine process can't be read")
                return has_worked
            if isinstance(message, StepReport):
                has_worked = True
                self._hang_watch.sign_of_life()
                with self._lock:
                    self._active_count = message.active_count
                    self._cache = message.cache
                    self._live.difference_update(step.key for step in message.steps if step.is_final)
                self._hand_over([_token_step(step) for step in message.steps])

    def _hand_over(self, steps: list[StepOutput]) -> None:
        try:
            self._sink(steps)
        except Exception:  # noqa: BLE001 - a bug of whoever takes the steps must not end the supervisor
            _log.exception("steps could not be handed over")

    def _fail_live(self, connection: Connection) -> None:
        with self._lock:
            self._connection = None
            live, self._live = self._live, set()
            self._active_count = 0
        with self._send_lock:  # a send to a dead engine fails at once, so this does not wait
            connection.close()
        if not live:
            return
        if self._closing.is_set():
            self._hand_over([StepOutput(key, finish_reason=FinishReason.CANCELLED) for key in live])
            return
        error = PipelineError(
            ErrorCode.ENGINE_UNAVAILABLE,
            "The engine stopped while it worked on this request. It is starting again; retry the request.",
            retry_after_s=_RETRY_AFTER_S,
        )
        self._hand_over([StepOutput(key, error=error) for key in live])

    def _restart(self) -> Connection | None:
        try:
            connection = self._start()
        except Exception:  # noqa: BLE001 - whatever it is, the next try may go well, and nobody else makes one
            if not self._closing.is_set():
                _log.exception("the CPU engine could not start again")
            return None
        with self._lock:
            self._connection = connection
        return connection


def _gauges(cache: CacheCounts) -> dict[str, float]:
    return {
        "kv_cache_hit_rate": cache.reused_tokens / max(cache.looked_up_tokens, 1),
        "kv_cache_used_share": cache.used_share,
    }


def _token_step(step: EngineStep) -> StepOutput:
    if step.failed:
        return StepOutput(step.key, error=internal_error())
    if step.guide_problem is not None:
        text = f"The guide can't be followed: {step.guide_problem}"
        return StepOutput(step.key, error=PipelineError(ErrorCode.VALUE_OUT_OF_RANGE, text, param=GUIDE_PARAM))
    ids = () if step.token_id is None else (step.token_id,)
    reason = None if step.finish_reason is None else _REASONS[step.finish_reason]
    if step.log_prob is None and step.prompt_log_probs is None:
        return StepOutput(step.key, ids, reason)
    return StepOutput(
        step.key,
        ids,
        reason,
        logprobs=() if step.log_prob is None else (step.log_prob,),
        top_logprobs=() if step.top_log_probs is None else (step.top_log_probs,),
        prompt_logprobs=step.prompt_log_probs,
    )


def _engine_unavailable() -> PipelineError:
    return PipelineError(
        ErrorCode.ENGINE_UNAVAILABLE, "The engine is starting. Retry shortly.", retry_after_s=_RETRY_AFTER_S
    )


def _reap(process: subprocess.Popen[bytes]) -> int | None:
    """End the process if it runs and wait for it; its exit status, or None when it does not end even so."""
    for end in (process.terminate, process.kill):
        end()
        with suppress(subprocess.TimeoutExpired):
            return process.wait(_STOP_LIMIT_S)
    _log.error("the CPU engine process %d does not end; it is left alone", process.pid)
    return None
