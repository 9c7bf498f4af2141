"""The Engine port: the interface between the executor and TensorRT-LLM, without any of upstream's types.

Two adapters implement it: bindings.py for engines, executors/tensorrt_llm_pytorch for model directories.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path
from typing import Protocol

from llm_pipeline.protocol.messages import GenerationRequest, PromptLogprobs, TopLogprobs


class QueueFullError(Exception):
    """The engine's own queue is full."""


class InvalidValueError(Exception):
    """Upstream rejects a value of the request; its message is for the log only."""


class EngineDownError(Exception):
    """The engine does not accept requests any more."""


class Ending(Enum):
    """Upstream's reason for the end of a request. UNKNOWN: final, but without a reason that we know."""

    END_ID = auto()
    STOP_WORDS = auto()
    LENGTH = auto()
    TIMED_OUT = auto()
    CANCELLED = auto()
    UNKNOWN = auto()


class FailureKind(Enum):
    """Scope and cause of an error."""

    UNKNOWN = auto()  # the request fails, for a reason that can't be determined
    REQUEST = auto()  # the engine rejects this request
    PROMPT_TOO_LONG = auto()  # for the engine's memory, whatever length it was built for
    QUEUE_FULL = auto()
    ENGINE = auto()  # the whole engine is unusable


@dataclass(frozen=True)
class EngineResponse:
    """New tokens of one request, an ending, or both; or an error. `token_ids` does not include the end token.

    `must_cancel`: the response could not be read, and the engine may still be working on the request.
    """

    request_id: int
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float | None, ...] = ()  # natural logarithms
    top_logprobs: tuple[TopLogprobs, ...] = ()  # of `token_ids`, if requested
    prompt_logprobs: PromptLogprobs | None = None  # with the first response, if requested
    ending: Ending | None = None
    error: str | None = None
    failure: FailureKind = FailureKind.UNKNOWN  # of the error
    must_cancel: bool = False


@dataclass(frozen=True)
class EngineStats:
    """Numbers of the newest iteration; `gauges` are exported as metrics, by name."""

    active_requests: int
    queued_requests: int
    gauges: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class GuidedDecodingConfig:
    """Input of the grammar compilers: the vocabulary in the order of token ids, and the content of tokenizer.json."""

    backend: str
    encoded_vocab: Sequence[str]
    tokenizer_json: str
    stop_token_ids: Sequence[int]


@dataclass(frozen=True)
class EngineOptions:
    """Options for loading an engine; None leaves a value to upstream. compatibility.py derives them."""

    engine_dir: Path
    vocab_size: int
    max_batch_size: int | None = None
    max_num_tokens: int | None = None
    max_queue_size: int | None = None
    uses_max_utilization: bool = False  # overcommits the KV cache, and pauses requests when it is full
    has_chunked_context: bool = False
    has_block_reuse: bool = False
    has_cache_salt: bool = True  # whether this release can separate the reused blocks of different salts
    kv_cache_free_fraction: float = 0.9
    kv_cache_tokens: int | None = None
    kv_host_cache_bytes: int | None = None
    orchestrator_worker: Path | None = None  # set: orchestrator mode
    guided_decoding: GuidedDecodingConfig | None = None


@dataclass(frozen=True)
class Machine:
    """The installed TensorRT-LLM and the GPUs that this process can use."""

    tensorrt_llm: str  # version
    sms: tuple[int, ...]  # compute capability times ten, of each GPU


class Engine(Protocol):
    """A loaded engine. Methods may be called concurrently from any thread, except `newest_stats`: from one only."""

    def can_enqueue(self) -> bool:
        """Returns False on MPI ranks other than the leader's."""

    def prepare(self, request: GenerationRequest) -> object:
        """Returns the request in upstream's form, for `enqueue`.

        Raises InvalidValueError if upstream rejects a value; any other exception is a bug of ours.
        """

    def enqueue(self, prepared: object) -> int:
        """Returns the request's id. Raises QueueFullError or EngineDownError; any other exception is a bug."""

    def await_responses(self, timeout_s: float) -> list[EngineResponse]:
        """Returns new responses in order, after at most `timeout_s`. Raises only if the engine is dead."""

    def cancel(self, request_id: int) -> None:
        """Ends the request soon; its last response has the ending CANCELLED."""

    def newest_stats(self) -> EngineStats | None:
        """Returns None if no iteration has ended since the last call. Drains upstream's buffer."""

    def shutdown(self) -> None:
        """Returns when the engine is down; on ranks above 0, when the leader's is."""
