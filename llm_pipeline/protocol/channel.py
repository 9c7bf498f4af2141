"""The messages of a channel. Their JSON is in channel_json.py.

A channel carries the tokens of all requests of one client of the ensemble, such as a worker of the front end, in one
response for each step of the engine (docs/decisions/0016). The client numbers its requests: a `slot` is unique among
all requests that it ever sends with one client id.

Bundle (client -> preprocess) -> PreparedBundle (-> decode) -> TokenBurst (-> postprocess) -> TextBurst (-> client).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llm_pipeline.protocol.engine_metrics import EngineReport
from llm_pipeline.protocol.errors import PipelineError
from llm_pipeline.protocol.messages import (
    CompletionParameters,
    FinishReason,
    GenerationRequest,
    PromptLogprobs,
    TextChunk,
    TextOptions,
    TopLogprobs,
)

MAX_BUNDLE_REQUESTS = 64
"""Most requests of one bundle. preprocess tokenizes them one after the other, and the first waits for the last."""

MAX_SLOT = 2**53 - 1
"""Largest slot: an integer that every JSON library reads exactly, and that fits the int64 arrays of decode."""

MAX_UNREAD_CHUNKS = 4096
"""decode sends no further burst while the client has not reported this many chunks as read: the tokens wait in decode,
where they become fewer and larger chunks. A front end writes a chunk in some 15 us, so it lags at most 60 ms behind."""

REPORT_CHUNKS = 1024
"""A client reports after this many chunks what it has read, and with each heartbeat."""


@dataclass(frozen=True)
class BundleItem:
    """One request of a bundle, as its client sent it."""

    slot: int
    parameters: CompletionParameters


@dataclass(frozen=True)
class PreparedItem:
    """One request of a bundle after preprocess: `request`, or the error that refuses it."""

    slot: int
    request: GenerationRequest | None = None
    error: PipelineError | None = None


@dataclass(frozen=True)
class StreamStart:
    """The facts that postprocess needs about a request before its first tokens."""

    slot: int
    key: str
    text_options: TextOptions


@dataclass(frozen=True)
class StreamEnd:
    """The end of a request: a finish reason or an error."""

    slot: int
    finish_reason: FinishReason | None = None
    error: PipelineError | None = None


@dataclass(frozen=True)
class StreamLogprobs:
    """The logprobs of a request's tokens in one burst, as in TokenChunk."""

    slot: int
    logprobs: tuple[float | None, ...] = ()
    top_logprobs: tuple[TopLogprobs, ...] = ()
    prompt_logprobs: PromptLogprobs | None = None


@dataclass(frozen=True)
class TokenBurst:
    """The new tokens of all requests of one client, from decode.

    `slots` are the requests with new tokens, each once; `counts` is the number of tokens of each, and `token_ids` are
    all tokens in the order of `slots`. `serial` counts the bursts of a client from 0. `ack_address` as in TokenChunk.
    `report`, which postprocess passes on, is for metrics; a burst may have nothing else.
    """

    client_id: str
    serial: int
    slots: Sequence[int] = ()
    counts: Sequence[int] = ()
    token_ids: Sequence[int] = ()
    starts: Sequence[StreamStart] = ()
    ends: Sequence[StreamEnd] = ()
    logprobs: Sequence[StreamLogprobs] = ()
    ack_address: str | None = None
    report: EngineReport | None = None


@dataclass(frozen=True)
class Share:
    """The requests that one of several processes of postprocess handles: those with slot % count == index."""

    index: int = 0
    count: int = 1

    def includes(self, slot: int) -> bool:
        return slot % self.count == self.index


ALL_REQUESTS = Share()


@dataclass(frozen=True)
class TextBurst:
    """The new text of all requests of one client, from postprocess.

    `chunks` are the new chunks in order, with the slots of their requests; a request may have more than one. `ends` are
    the requests that have ended in the engine, with the error if they failed: nothing more comes for them. A request's
    last chunk, the one with the finish reason, may come in an earlier burst than its end. `report` as in TokenBurst.
    """

    serial: int
    chunks: Sequence[tuple[int, TextChunk]] = ()
    ends: Sequence[tuple[int, PipelineError | None]] = ()
    report: EngineReport | None = None
