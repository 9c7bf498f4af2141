"""The Executor port: the interface between decode and anything that generates tokens.

A request is named by its number, which the caller chooses and never uses again while the process lives.

Rules, checked for every executor by tests/support/executor_rules.py:

* After `submit` returns, the request ends exactly once: the sink gets exactly one `RequestEnd` for it, in the step with
  its last tokens or in a later one. Nothing follows it.
* `submit` raises PipelineError instead of accepting a request that can't be served: the queue is full, the engine is
  down, or a parameter is not supported (protocol/capabilities.py).
* `cancel` returns at once and ignores numbers that are unknown or have ended. The end still comes: CANCELLED, or the
  result of whatever ended the request first.
* The sink is called from the executor's own threads, never from within `submit`, and never while the executor holds a
  lock that `submit` or `cancel` takes. Calls about one request come one after the other and in the order of its tokens.
* A step has each request at most once. So an executor may combine several steps of its engine only if it merges the
  tokens of each request (StepBuilder).
* The arrays of a step do not change after the call: the sink may keep them, and neither side writes to them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from llm_pipeline.protocol.messages import EngineStep, GenerationRequest

_log = logging.getLogger(__name__)

OutputSink = Callable[[EngineStep], None]


class EngineStartError(Exception):
    """The engine could not be started; the message gives the reason."""


@dataclass(frozen=True)
class ExecutorStats:
    """Requests that are being decoded and requests that wait, and further numbers of the engine.

    `gauges` are by the names in protocol/engine_metrics.py, and have only the numbers that the engine reports.

    `stalled_s` is the time in seconds that an engine with work has been without a step, also during the prefill of a
    long prompt; 0 if the engine does not report its steps.
    """

    active_requests: int
    queued_requests: int
    gauges: Mapping[str, float] = field(default_factory=dict)
    stalled_s: float = 0.0


class Executor(Protocol):
    """Generates tokens for many requests at once."""

    def submit(self, number: int, request: GenerationRequest) -> None:
        """Accepts a request; its output goes to the sink. Raises PipelineError if it can't be accepted now."""

    def cancel(self, number: int) -> None:
        """Ends the request soon. Unknown numbers are ignored."""

    def stats(self) -> ExecutorStats:
        """Returns recent request counts and gauges. Cheap: called 20 times a second and more."""

    def close(self) -> None:
        """Ends all requests and frees the engine. Returns within seconds."""


class GuardedSink:
    """Passes steps to a sink; an exception of the sink is logged and does not stop the thread that emits."""

    def __init__(self, sink: OutputSink) -> None:
        self._sink = sink

    def emit(self, step: EngineStep) -> None:
        """Calls the sink, unless the step is empty."""
        if not (len(step.numbers) or step.ends or step.begun):
            return
        try:
            self._sink(step)
        except Exception:  # noqa: BLE001 - a bug in the sink must not end the requests of the whole engine
            _log.exception(
                "the output sink failed; a step with %d tokens and %d endings is lost",
                len(step.token_ids),
                len(step.ends),
            )
