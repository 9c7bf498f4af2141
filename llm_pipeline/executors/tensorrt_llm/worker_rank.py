"""The executor of MPI ranks above 0, which compute for the leader and take no requests of their own."""

from __future__ import annotations

import logging
import threading

from llm_pipeline.executors.port import ExecutorStats
from llm_pipeline.executors.tensorrt_llm.engine import Engine
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.protocol.messages import GenerationRequest

_log = logging.getLogger(__name__)
_CLOSE_LIMIT_S = 10.0


class WorkerRankExecutor:
    """Stays in upstream's `shutdown` until the leader is down, as upstream wants it, in a thread of its own.

    Not in the caller's: Triton would never finish loading the model, and would not answer SIGTERM meanwhile.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._thread = threading.Thread(target=self._follow, name="tensorrt-llm-follower", daemon=True)
        self._thread.start()

    def submit(self, request: GenerationRequest) -> None:
        raise PipelineError(
            ErrorCode.ENGINE_UNAVAILABLE, "This process works for another one, which takes the requests. Ask that one."
        )

    def cancel(self, key: str) -> None:
        """Nothing to cancel: no request is accepted."""

    def stats(self) -> ExecutorStats:
        return ExecutorStats(0, 0)

    def close(self) -> None:
        self._thread.join(timeout=_CLOSE_LIMIT_S)

    def _follow(self) -> None:
        try:
            self._engine.shutdown()
        except Exception:  # noqa: BLE001 - upstream's; there is nobody to hand it to
            _log.exception("this rank's part of the engine failed")
        else:
            _log.info("the leader is down; this rank has nothing to do any more")
