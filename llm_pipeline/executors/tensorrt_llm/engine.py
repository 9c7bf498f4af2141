"""The port between the executor and TensorRT-LLM: what one says to the other, without a type of upstream's.

Another adapter can stand behind it, such as one over the PyTorch LLM API, which is what upstream keeps after 1.2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path
from typing import Protocol

from llm_pipeline.protocol.messages import GenerationRequest


class QueueFullError(Exception):
    """The engine's own queue takes no more requests."""


class BadValueError(Exception):
    """Upstream refuses a value of the request; its words are for the log."""


class EngineDownError(Exception):
    """The engine takes no requests any more."""


class Ending(Enum):
    """Why a request has ended, as upstream says it. UNKNOWN: final, without a reason that we know."""

    END_ID = auto()
    STOP_WORDS = auto()
    LENGTH = auto()
    TIMED_OUT = auto()
    CANCELLED = auto()
    UNKNOWN = auto()


class Failure(Enum):
    """What an error means: for its request alone, or for the engine."""

    UNKNOWN = auto()  # the request fails; whose fault it is can't be told
    REQUEST = auto()  # the engine refuses this request
    PROMPT_TOO_LONG = auto()  # for the memory that the engine has, whatever it was built for
    QUEUE_FULL = auto()
    ENGINE = auto()  # nothing works any more


@dataclass(frozen=True)
class EngineResponse:
    """New tokens of one request, an ending, or both; or an error. `token_ids` does not hold the end token.

    `may_go_on`: the error is ours (the response could not be read), and the engine may still work on the request.
    """

    request_id: int
    token_ids: tuple[int, ...] = ()
    log_probs: tuple[float, ...] = ()
    ending: Ending | None = None
    error: str | None = None
    failure: Failure = Failure.UNKNOWN  # of the error
    may_go_on: bool = False


@dataclass(frozen=True)
class EngineStats:
    """The newest iteration's numbers; `gauges` are those for people, by name."""

    active_requests: int
    queued_requests: int
    gauges: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class GuidedDecoding:
    """The vocabulary as the grammar compilers want it: tokens in the order of their ids, and tokenizer.json itself."""

    backend: str
    encoded_vocab: Sequence[str]
    tokenizer_json: str
    stop_ids: Sequence[int]


@dataclass(frozen=True)
class EngineOptions:
    """How to load an engine; None leaves a value to upstream. fit.py makes it from settings and config.json."""

    engine_dir: Path
    vocab_size: int
    max_batch_size: int | None = None
    max_num_tokens: int | None = None
    max_queue_size: int | None = None
    fills_kv_cache: bool = False  # admits more than surely fits, and pauses requests when the cache is full
    has_chunked_context: bool = False
    has_block_reuse: bool = False
    kv_cache_free_fraction: float = 0.9
    kv_cache_tokens: int | None = None
    kv_host_cache_bytes: int | None = None
    orchestrator_worker: Path | None = None  # set: orchestrator mode
    guided_decoding: GuidedDecoding | None = None


@dataclass(frozen=True)
class Machine:
    """What upstream runs on, as this process sees it."""

    tensorrt_llm: str  # the version that is installed
    sms: tuple[int, ...]  # compute capability times ten, of each GPU that this process may use


class Engine(Protocol):
    """A loaded engine. Every method may be called from any thread, several at a time, but `newest_stats` from one."""

    def can_enqueue(self) -> bool:
        """False on MPI ranks other than the leader's."""

    def prepare(self, request: GenerationRequest) -> object:
        """The request as upstream wants it, for `enqueue`. BadValueError; anything else is a bug of ours."""

    def enqueue(self, prepared: object) -> int:
        """The request's id. QueueFullError, EngineDownError; anything else is a bug, ours or upstream's."""

    def await_responses(self, limit_s: float) -> list[EngineResponse]:
        """What has come, in order; waits for at most `limit_s`. Raises only when the engine is dead."""

    def cancel(self, request_id: int) -> None:
        """The request ends soon, with a response that says CANCELLED."""

    def newest_stats(self) -> EngineStats | None:
        """None when no iteration has ended since the last call. Drains upstream's buffer: for one reader."""

    def shutdown(self) -> None:
        """Returns when the engine is down; on ranks above 0, when the leader's is."""
