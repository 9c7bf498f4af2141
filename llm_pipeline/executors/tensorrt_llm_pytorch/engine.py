"""An Engine over the LLM API: one event loop in a thread of its own, in which every call of the LLM is made.

Upstream's results bind to the loop in which `generate_async` is called. Its own queue has no limit and no turns, and
its requests no time limit: the executor's admission stands in front of it, and a timer here ends a request that takes
too long. Request ids are given here, so that a request can be cancelled before upstream has seen it.

Responses of one iteration of the loop, which are those of one step of the engine, reach the executor together.

An error other than RequestError that reaches a request's iteration comes from upstream's background: it has shut the
LLM down before it raises (GenerationExecutor._handle_background_error), and everything else ends with it. If it has
not, the error is of this one result, as an assertion about its logprobs is, and fails its request alone.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
import time
from collections.abc import AsyncIterator, Mapping
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple, Protocol

from llm_pipeline.executors.tensorrt_llm.engine import (
    Ending,
    EngineDownError,
    EngineResponse,
    EngineStats,
    FailureKind,
)
from llm_pipeline.executors.tensorrt_llm_pytorch.error_classification import classify, loggable
from llm_pipeline.executors.tensorrt_llm_pytorch.outputs import OutputReader
from llm_pipeline.executors.tensorrt_llm_pytorch.ranks import RankWatch
from llm_pipeline.protocol.engine_metrics import with_used_share
from llm_pipeline.protocol.messages import GenerationRequest

_log = logging.getLogger(__name__)
_STATS_PAUSE_S = 0.2  # upstream forwards them no faster (GenerationExecutorProxy._iteration_result_task)
_REASON_GRACE_S = 5.0  # for the error that shut the LLM down to reach a request, so that the log has it
_LOOP_END_TIMEOUT_S = 5.0
RANKS_END_TIMEOUT_S = 8.0  # below Timeouts.shutdown_s, after which this process ends


class RequestRefusedError(Exception):
    """Upstream refuses one request, or has failed it; the message is upstream's."""


class Generation(Protocol):
    """Upstream's RequestOutput. Its iteration yields itself, with more output each time."""

    def __aiter__(self) -> AsyncIterator[Any]: ...

    def abort(self) -> None:
        """Ends the request soon, with the finish reason `cancelled`."""


class Llm(Protocol):
    """A loaded LLM. `generate` and `stats` are called in one event loop, `prepare` and `is_shut_down` anywhere."""

    def prepare(self, request: GenerationRequest) -> object:
        """Returns the request in upstream's form, for one call of `generate`. Raises InvalidValueError."""

    def generate(self, prepared: object) -> Generation:
        """Starts a request. Raises RequestRefusedError; its iteration raises `request_error`."""

    @property
    def request_error(self) -> type[Exception]:
        """The class of errors that fail one request alone."""

    def stats(self) -> AsyncIterator[Mapping[str, Any]]:
        """Returns the statistics of the iterations since the last call, under C++'s names; ends after a while."""

    def is_shut_down(self) -> bool:
        """Whether the LLM accepts no requests any more, for whatever reason."""

    def shutdown(self) -> None:
        """Ends the LLM and its processes; may block."""


class _Prepared(NamedTuple):
    request: GenerationRequest
    upstream: object


class LlmEngine:
    """An Engine that a loaded LLM serves. Starts its event loop at once. `ranks` are the processes that it spawned."""

    def __init__(self, llm: Llm, ranks: RankWatch | None = None) -> None:
        self._llm = llm
        self._ranks = ranks
        self._ids = itertools.count(1)
        self._ready: SimpleQueue[list[EngineResponse]] = SimpleQueue()
        self._death: str | None = None  # set: the event loop has ended
        self._shut_down_at: float | None = None  # monotonic; when the awaiter saw that the LLM is down
        self._is_closing = threading.Event()
        # The rest belongs to the loop's thread.
        self._running: dict[int, _Running] = {}
        self._batch: list[EngineResponse] = []
        self._stats: Mapping[str, Any] | None = None
        self._stats_error: Exception | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="tensorrt-llm-loop", daemon=True)
        self._thread.start()

    # The Engine port: any thread

    def can_enqueue(self) -> bool:
        return True

    def prepare(self, request: GenerationRequest) -> object:
        return _Prepared(request, self._llm.prepare(request))

    def enqueue(self, prepared: object) -> int:
        assert isinstance(prepared, _Prepared)
        request_id = next(self._ids)
        if self._death is not None or self._llm.is_shut_down():
            raise EngineDownError(self._death or "the LLM is shut down")
        self._call(self._start, request_id, prepared)
        return request_id

    def await_responses(self, timeout_s: float) -> list[EngineResponse]:
        responses: list[EngineResponse] = []
        try:
            responses += self._ready.get(timeout=timeout_s)
            for _ in range(self._ready.qsize()):
                responses += self._ready.get_nowait()
        except Empty:
            self._check_alive()
        return responses

    def cancel(self, request_id: int) -> None:
        self._call(self._abort, request_id)

    def newest_stats(self) -> EngineStats | None:
        if (error := self._stats_error) is not None:
            self._stats_error = None
            raise error
        stats, self._stats = self._stats, None
        return None if stats is None else read_stats(stats)

    def shutdown(self) -> None:
        self._is_closing.set()
        killer = threading.Timer(RANKS_END_TIMEOUT_S, self.kill_ranks)  # upstream waits for a dead one without end
        killer.daemon = True
        killer.start()
        try:
            self._llm.shutdown()
        finally:
            killer.cancel()
            self._end_loop()

    def kill_ranks(self) -> None:
        """Kills the processes of spawned ranks, which may outlive this one and keep their GPU memory."""
        if self._ranks is not None:
            self._ranks.kill()

    def _call(self, function: Any, *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError as error:  # the loop is closed
            raise EngineDownError(self._death or "the event loop of the LLM API has ended") from error

    def _check_alive(self) -> None:
        """Raises RuntimeError if the loop, a rank or the LLM has ended: nothing that is awaited would show it."""
        if self._is_closing.is_set():
            return
        if self._death is not None:
            raise RuntimeError(self._death)
        if self._ranks is not None and (pid := self._ranks.find_dead()) is not None:
            raise RuntimeError(f"the process of a rank has died: {pid}")
        if not self._llm.is_shut_down():
            return
        self._shut_down_at = self._shut_down_at or time.monotonic()
        if time.monotonic() - self._shut_down_at > _REASON_GRACE_S:
            raise RuntimeError("the LLM has shut itself down; its log has the reason")

    def _end_loop(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(_LOOP_END_TIMEOUT_S)

    # The loop's thread

    def _run(self) -> None:
        reason = "the event loop of the LLM API has ended"
        try:
            asyncio.set_event_loop(self._loop)
            collector = self._loop.create_task(self._collect_stats())
            self._loop.run_forever()
            self._loop.run_until_complete(_cancel([collector, *(item.task for item in self._running.values())]))
        except Exception as error:  # noqa: BLE001 - upstream's callbacks run in it; the awaiter reports it
            _log.exception("the event loop of the LLM API failed")
            reason = f"{reason}: {error!r}"
        finally:
            self._death = reason
            self._loop.close()

    def _start(self, request_id: int, prepared: _Prepared) -> None:
        try:
            generation = self._llm.generate(prepared.upstream)
        except Exception as error:  # noqa: BLE001 - it fails its own request, or all of them
            self._send(self._failure(request_id, error))
            return
        running = self._running[request_id] = _Running(generation)
        running.task = self._loop.create_task(self._relay(request_id, running, OutputReader(prepared.request)))
        if (limit_s := prepared.request.time_limit_s) is not None:
            running.timer = self._loop.call_later(limit_s, self._time_out, request_id)

    async def _relay(self, request_id: int, running: _Running, reader: OutputReader) -> None:
        """Sends a request's responses until it ends, and exactly one that ends it."""
        try:
            async for result in running.generation:
                response = reader.read(request_id, result)
                if running.is_over:
                    continue  # timed out: the rest is dropped
                if response is not None:
                    self._send(response)
                    running.is_over = response.ending is not None
            if not running.is_over:
                self._send(EngineResponse(request_id, ending=Ending.UNKNOWN))
        except Exception as error:  # noqa: BLE001 - as in _start
            failure = self._failure(request_id, error)
            if failure.failure is FailureKind.ENGINE or not running.is_over:
                self._send(failure)
            if not isinstance(error, self._llm.request_error):
                self._abort(request_id)
        finally:
            self._running.pop(request_id, None)
            if running.timer is not None:
                running.timer.cancel()

    def _failure(self, request_id: int, error: Exception) -> EngineResponse:
        """Returns the failure of one request, or of the whole engine."""
        message = str(error)
        if isinstance(error, RequestRefusedError):
            kind = classify(message)
            return EngineResponse(
                request_id,
                error=loggable(message),
                failure=FailureKind.REQUEST if kind is FailureKind.UNKNOWN else kind,
            )
        if isinstance(error, self._llm.request_error):
            return EngineResponse(request_id, error=loggable(message), failure=classify(message))
        if self._llm.is_shut_down():
            return EngineResponse(request_id, error=f"{type(error).__name__}: {message}", failure=FailureKind.ENGINE)
        _log.error("a result of the LLM API could not be read", exc_info=error)
        return EngineResponse(request_id, error=f"unreadable result: {error!r}", must_cancel=True)

    def _time_out(self, request_id: int) -> None:
        """Ends a request at its time limit, whatever becomes of it in the engine."""
        running = self._running.get(request_id)
        if running is None or running.is_over:
            return
        running.is_over = True
        self._send(EngineResponse(request_id, ending=Ending.TIMED_OUT))
        self._abort(request_id)

    def _abort(self, request_id: int) -> None:
        running = self._running.get(request_id)
        if running is None:
            return
        try:
            running.generation.abort()
        except Exception:  # noqa: BLE001 - upstream's
            _log.exception("the LLM API failed to abort a request; it ends by itself or after the cancel timeout")

    def _send(self, response: EngineResponse) -> None:
        """Sends a response with the others of this iteration of the loop."""
        if not self._batch:
            self._loop.call_soon(self._flush)
        self._batch.append(response)

    def _flush(self) -> None:
        self._ready.put(self._batch)
        self._batch = []

    async def _collect_stats(self) -> None:
        """Keeps the newest statistics. Their only reader: upstream's iterator is one object for all."""
        while True:
            try:
                async for stats in self._llm.stats():
                    self._stats = stats
            except Exception as error:  # noqa: BLE001 - statistics must not fail requests; the executor logs it
                self._stats_error = error
            await asyncio.sleep(_STATS_PAUSE_S)


class _Running:
    """A request that upstream has. `is_over`: its end was sent."""

    __slots__ = ("generation", "is_over", "task", "timer")

    def __init__(self, generation: Generation) -> None:
        self.generation = generation
        self.is_over = False
        self.task: asyncio.Task[None]
        self.timer: asyncio.TimerHandle | None = None


async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


_GAUGES = {
    "iteration": "iter",
    "active_requests": "numActiveRequests",
    "queued_requests": "numQueuedRequests",
    "max_active_requests": "maxNumActiveRequests",
    "gpu_memory_bytes": "gpuMemUsage",
}
_KV_CACHE_GAUGES = {
    "kv_cache_max_blocks": "maxNumBlocks",
    "kv_cache_used_blocks": "usedNumBlocks",
    "kv_cache_free_blocks": "freeNumBlocks",
    "kv_cache_reused_blocks": "reusedBlocks",
    "kv_cache_tokens_per_block": "tokensPerBlock",
    "kv_cache_hit_rate": "cacheHitRate",
}
_BATCH_GAUGES = {
    "scheduled_requests": "numScheduledRequests",
    "context_requests": "numContextRequests",
    "generation_requests": "numGenRequests",
    "paused_requests": "numPausedRequests",
    "context_tokens": "numCtxTokens",
}


def read_stats(stats: Mapping[str, Any]) -> EngineStats:
    """Returns one iteration's statistics under the gauges of the engine runtime.

    Raises KeyError if the counts of requests are missing; any other number may be.
    """
    gauges: dict[str, float] = {}
    for section, names in (
        (stats, _GAUGES),
        (stats.get("kvCacheStats") or {}, _KV_CACHE_GAUGES),
        (stats.get("inflightBatchingStats") or {}, _BATCH_GAUGES),
    ):
        gauges |= {name: float(section[key]) for name, key in names.items() if section.get(key) is not None}
    if (latency_ms := stats.get("iterLatencyMS")) is not None:
        gauges["iteration_latency_s"] = float(latency_ms) / 1000
    return EngineStats(int(stats["numActiveRequests"]), int(stats["numQueuedRequests"]), with_used_share(gauges))
