"""What decode asks of anything that makes tokens: the Executor port, in our own terms.

Rules, which tests/support/executor_rules.py holds every executor to:

* After `submit` returns, the request ends exactly once: the sink gets one step that is final, whatever happens.
* `submit` raises PipelineError (queue full, engine down, a parameter that it has no way to honour, see capabilities.py)
  instead of accepting a request that it can't serve. One whose key is still in use is such a request (`key_in_use`).
* `cancel` is a wish: it returns at once, knows unknown keys, and the final step still comes (CANCELLED, or whatever
  ended the request first).
* The sink is called from the executor's own threads, never from within `submit`, and never two at a time for one key.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from llm_pipeline.engine_files.manifest import EngineManifest
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.protocol.messages import GenerationRequest, StepOutput
from llm_pipeline.runtime.settings import PipelineSettings

OutputSink = Callable[[Sequence[StepOutput]], None]


@dataclass(frozen=True)
class ExecutorStats:
    """How many requests the engine decodes and how many wait for it; and what else it says about itself, by name."""

    active_requests: int
    queued_requests: int
    gauges: Mapping[str, float] = field(default_factory=dict)


class Executor(Protocol):
    """Makes tokens for many requests at once."""

    def submit(self, request: GenerationRequest) -> None:
        """Accept a request; its steps go to the sink. PipelineError when it can't be accepted now."""

    def cancel(self, key: str) -> None:
        """End the request soon. Unknown keys are ignored."""

    def stats(self) -> ExecutorStats:
        """A recent count of requests."""

    def close(self) -> None:
        """End all requests and free the engine. Returns within seconds."""


def duplicate_request() -> PipelineError:
    """What a request gets whose key another one still has: its steps could not be told from the other's."""
    return PipelineError(
        ErrorCode.VALUE_OUT_OF_RANGE, "This request_key is in use; every request needs its own.", param="request_key"
    )


def create_executor(settings: PipelineSettings, manifest: EngineManifest, sink: OutputSink) -> Executor:
    """The executor that the settings name. Each imports its heavy library inside its own module."""
    if settings.executor == "cpu":
        from llm_pipeline.executors.cpu.executor import CpuExecutor

        return CpuExecutor(settings, manifest, sink)
    if settings.executor == "tensorrt_llm":
        from llm_pipeline.executors.tensorrt_llm.load import load_executor

        return load_executor(settings, manifest, sink)
    from llm_pipeline.executors.scripted.executor import ScriptedExecutor

    return ScriptedExecutor(settings, manifest, sink)
