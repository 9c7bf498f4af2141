"""The Executor port: the interface between decode and anything that generates tokens.

Rules, checked for every executor by tests/support/executor_rules.py:

* After `submit` returns, the request ends exactly once: the sink gets exactly one final step for it.
* `submit` raises PipelineError instead of accepting a request that can't be served: the queue is full, the engine is
  down, a parameter is not supported (protocol/capabilities.py), or another live request has the same key
  (`duplicate_request`).
* `cancel` returns at once and ignores unknown keys. The final step still comes: CANCELLED, or the result of whatever
  ended the request first.
* The sink is called from the executor's own threads, never from within `submit`, and never concurrently for one key.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.protocol.messages import GenerationRequest, StepOutput

_log = logging.getLogger(__name__)

OutputSink = Callable[[Sequence[StepOutput]], None]


class EngineStartError(Exception):
    """The engine could not be started; the message gives the reason."""


@dataclass(frozen=True)
class ExecutorStats:
    """Requests that are being decoded and requests that wait, and further gauges of the engine by name."""

    active_requests: int
    queued_requests: int
    gauges: Mapping[str, float] = field(default_factory=dict)


class Executor(Protocol):
    """Generates tokens for many requests at once."""

    def submit(self, request: GenerationRequest) -> None:
        """Accepts a request; its steps go to the sink. Raises PipelineError if it can't be accepted now."""

    def cancel(self, key: str) -> None:
        """Ends the request soon. Unknown keys are ignored."""

    def stats(self) -> ExecutorStats:
        """Returns recent request counts and gauges."""

    def close(self) -> None:
        """Ends all requests and frees the engine. Returns within seconds."""


class GuardedSink:
    """Passes steps to a sink; an exception of the sink is logged and does not stop the thread that emits."""

    def __init__(self, sink: OutputSink) -> None:
        self._sink = sink

    def emit(self, steps: Sequence[StepOutput]) -> None:
        """Calls the sink once, unless `steps` is empty."""
        if not steps:
            return
        try:
            self._sink(steps)
        except Exception:  # noqa: BLE001 - a bug in the sink must not end the requests of the whole engine
            _log.exception("the output sink failed; %d steps are lost", len(steps))


def duplicate_request() -> PipelineError:
    """Returns the error for a key that a live request already has: their steps could not be distinguished."""
    return PipelineError(
        ErrorCode.VALUE_OUT_OF_RANGE,
        "This request_key is already in use. Send a unique key with each request.",
        param="request_key",
    )
