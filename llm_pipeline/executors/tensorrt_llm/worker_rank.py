"""The executor of MPI ranks above 0, which compute for the leader and accept no requests of their own."""

from __future__ import annotations

import logging
import threading
from typing import Protocol

from llm_pipeline.executors.port import ExecutorStats
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.protocol.messages import GenerationRequest

_log = logging.getLogger(__name__)
_JOIN_TIMEOUT_S = 10.0


class WorkerRank(Protocol):
    """The part of a rank above 0 that is used: an Engine has it."""

    def shutdown(self) -> None:
        """Returns when the leader is down."""


class WorkerRankExecutor:
    """Waits in upstream's `shutdown` until the leader is down, as upstream requires, on its own thread.

    On the caller's thread, Triton would never finish loading the model and could not handle SIGTERM.
    """

    def __init__(self, engine: WorkerRank) -> None:
        self._engine = engine
        self._thread = threading.Thread(target=self._wait_for_leader, name="tensorrt-llm-worker-rank", daemon=True)
        self._thread.start()

    def submit(self, number: int, request: GenerationRequest) -> None:
        raise PipelineError(
            ErrorCode.ENGINE_UNAVAILABLE, "This is a worker rank and accepts no requests. Send requests to rank 0."
        )

    def cancel(self, number: int) -> None:
        """Does nothing: no request is ever accepted."""

    def stats(self) -> ExecutorStats:
        return ExecutorStats(0, 0)

    def close(self) -> None:
        self._thread.join(timeout=_JOIN_TIMEOUT_S)

    def _wait_for_leader(self) -> None:
        try:
            self._engine.shutdown()
        except Exception:  # noqa: BLE001 - upstream's; there is no caller to pass it to
            _log.exception("the engine of this rank failed")
        else:
            _log.info("the leader is down; this rank is idle")
