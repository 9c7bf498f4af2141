"""The frozen messages between the stages, in the order of a request's life.

HTTP -> CompletionParameters -> (preprocess) -> GenerationRequest -> (executor) -> EngineStep -> (decode) -> TokenChunk
-> (postprocess) -> TextChunk -> SSE. This module depends on neither Triton, HTTP nor an engine. How chunks of many
requests travel together is in channel.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from llm_pipeline.protocol.errors import PipelineError

GUIDE_PARAM = "guided_decoding_guide"
"""The `param` of errors about a guide. The front end replaces it with the field that the client used."""

TOKEN_LIMIT_PARAM = "max_tokens"
"""The name of the token limit in errors. The front end replaces it with the field that the client used."""


PROMPT_PARAM = "prompt"
"""The `param` of errors about the prompt. The front end replaces it with the field that the client used."""


class FinishReason(str, Enum):
    """Why a request ended. CANCELLED never reaches a client, because its connection is closed."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class CompletionParameters:
    """One prompt and the parameters of its completion, as the client sent them; None means the client omitted it.

    Exactly one of `prompt_text` and `token_ids` is set. `request_key` identifies the request inside the pipeline. It is
    generated and unique; the client's request id may repeat. `seed` is an int64. The wire form of each field is in
    fields.py.

    `plain_spans` are starts and ends, in turn, of parts of `prompt_text` in code points: text of a chat's user that
    spells a token such as <|im_end|>, and is encoded as ordinary text and not as that token.
    """

    request_key: str
    request_id: str
    prompt_text: str | None = None
    token_ids: tuple[int, ...] | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    return_token_ids: bool = False
    return_tokens_as_token_ids: bool = False  # in logprobs; implies return_token_ids
    stream: bool = False
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()  # token id, number added to its logit
    bias_words: tuple[tuple[str, float], ...] = ()  # the same for each token of a text
    bad_words: tuple[str, ...] = ()
    min_tokens: int | None = None
    ignore_eos: bool = False
    end_id: int | None = None  # replaces the model's own end tokens
    stop_token_ids: tuple[int, ...] = ()
    truncate_prompt_tokens: int | None = None  # tokens of the prompt to keep; -1: those that fit the context
    truncation_side: str | None = None  # of the tokens that are dropped: "left" (if omitted) or "right"
    add_special_tokens: bool = True
    priority: int | None = None  # as in vLLM: any integer, lower goes first, 0 if omitted
    num_logprobs: int | None = None  # most likely tokens per position, in OpenAI's form
    return_logprob_values: bool = False  # logprob of each token, as numbers
    echo: bool = False  # return the prompt before the completion
    suffix: str | None = None  # text after the completion
    plain_spans: tuple[int, ...] = ()  # of prompt_text, see above
    tenant: str | None = None  # an opaque name, equal for all requests that share one turn in the queue and KV cache
    tenant_share: int | None = None  # weight of the tenant's turn, 1 if omitted
    adapter: str | None = None  # name of a LoRA adapter of the model
    guide: Guide | None = None
    guide_param: str = GUIDE_PARAM  # the client's name of the guide, for errors; not sent to Triton
    prompt_param: str = PROMPT_PARAM  # the client's name of the prompt, for errors; not sent to Triton
    token_limit_param: str = TOKEN_LIMIT_PARAM  # the client's name of max_tokens, for errors; not sent to Triton


@dataclass(frozen=True)
class SamplingParams:
    """Sampling params of a request; every value is set, in range and normalized.

    `is_greedy`: temperature 0, top_p 0 or top_k 1 was requested; temperature, top_k, top_p, min_p and seed then have no
    effect. `top_k` 0 is off. `seed` is a uint64, random if the request had none.

    The fields after `seed` have neutral defaults. An executor rejects those that it does not support (capabilities.py).
    """

    is_greedy: bool = True
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    min_tokens: int = 0  # minimum number of tokens before an end token is allowed
    logit_bias: tuple[tuple[int, float], ...] = ()  # token id, number added to its logit
    bad_words: tuple[tuple[int, ...], ...] = ()  # token sequences that must not appear


class GuideType(str, Enum):
    """The language of a guide. JSON is any JSON value, without a source."""

    JSON = "json"
    JSON_SCHEMA = "json_schema"
    REGEX = "regex"
    EBNF_GRAMMAR = "ebnf_grammar"
    STRUCTURAL_TAG = "structural_tag"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class Guide:
    """A constraint on the generated text."""

    type: GuideType
    source: str | None = None  # the schema, the expression, the grammar


@dataclass(frozen=True)
class TextOptions:
    """Options of a request for postprocess. The first chunk carries them.

    Stop strings match only after the first `min_tokens` tokens. `visible_stop_token_ids` are stop tokens whose text is
    part of the completion if the request ends with one.

    `num_logprobs` is the number of most likely tokens listed for each position, None for no list;
    `return_logprob_values` requests the logprobs as numbers. `echo_ids`: the prompt, if it is echoed. `echo_text`: the
    original prompt text; None if the prompt was token ids. `prompt_token_ids`: the prompt, if its ids are returned.

    `context_ids` are the last tokens of a token-id prompt, which may end inside a character that the generated bytes
    complete (else empty). `is_text_start`: the prompt contains only special tokens, so a SentencePiece-style tokenizer
    drops the first space, as it does when decoding the whole text.
    """

    stop: tuple[str, ...] = ()
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    return_token_ids: bool = False
    stream: bool = False
    max_tokens: int = 1
    prompt_tokens: int = 0
    context_ids: tuple[int, ...] = ()
    is_text_start: bool = False
    min_tokens: int = 0
    visible_stop_token_ids: tuple[int, ...] = ()
    num_logprobs: int | None = None
    return_logprob_values: bool = False
    return_tokens_as_token_ids: bool = False
    echo_ids: tuple[int, ...] | None = None
    echo_text: str | None = None
    prompt_token_ids: tuple[int, ...] | None = None


@dataclass(frozen=True)
class GenerationRequest:
    """A validated request: nothing downstream checks it again.

    `prompt_ids` are in the vocabulary, and `len(prompt_ids) + max_tokens` fits the engine's context. `max_tokens` 0
    generates no token; executors receive it only with `return_prompt_logprobs`.
    """

    key: str
    prompt_ids: tuple[int, ...]
    max_tokens: int
    sampling: SamplingParams
    stop_token_ids: tuple[int, ...] = ()  # any of these ends the request with STOP; it is the last token returned
    text_options: TextOptions = field(default_factory=TextOptions)
    # A hint: an executor may end the request with STOP once it generates one of these. Postprocess decides whether a
    # stop string is in the text, because text tokenizes in more than one way.
    stop_token_sequences: tuple[tuple[int, ...], ...] = ()
    return_logprobs: bool = False  # of each token returned
    num_top_logprobs: int = 0  # with return_logprobs: number of most likely tokens per position
    return_prompt_logprobs: bool = False  # with return_logprobs: also of the prompt's tokens, in the first step
    guide: Guide | None = None
    urgency: float = 0.5  # 0 to 1; higher goes first
    time_limit_s: float | None = None  # from submit; then the request fails with DEADLINE_EXCEEDED
    cache_salt: int | None = None  # uint64; requests with different salts share no KV cache
    tenant: str = ""  # requests of different tenants take turns in the executor's queue (executors/waiting_queue.py)
    tenant_share: int = 1  # weight of the tenant's turn
    adapter: str | None = None  # name of a LoRA adapter that the executor has
    guide_address: str | None = None  # of the process that makes the guide's masks, set by decode (guides/)


TopLogprobs: TypeAlias = "tuple[tuple[int, ...], tuple[float, ...]]"
"""The most likely tokens at one position, most likely first: their ids and their logprobs (natural logarithms)."""


@dataclass(frozen=True)
class PromptLogprobs:
    """Logprobs of a prompt's tokens, starting with the second: the first has no context to be predicted from.

    `tops` has the length of `values`, or is empty if the most likely tokens were not requested.
    """

    values: tuple[float | None, ...] = ()
    tops: tuple[TopLogprobs, ...] = ()


IntArray: TypeAlias = "npt.NDArray[np.integer[Any]]"


@dataclass(frozen=True)
class RequestEnd:
    """The end of a request in the engine: a finish reason or an error."""

    number: int
    finish_reason: FinishReason | None = None
    error: PipelineError | None = None


@dataclass(frozen=True)
class RequestLogprobs:
    """The logprobs of one request's tokens in one engine step.

    `logprobs` and `top_logprobs` have one entry for each of the request's tokens in this step if they were requested,
    else they are empty. A logprob is a natural logarithm, None if the engine has none. `prompt_logprobs` comes with the
    first step, if it was requested.
    """

    logprobs: tuple[float | None, ...] = ()
    top_logprobs: tuple[TopLogprobs, ...] = ()
    prompt_logprobs: PromptLogprobs | None = None


@dataclass(frozen=True)
class EngineStep:
    """The output of one engine step for all requests that it advanced: arrays, because there is one for each token.

    A request is named by the number that `Executor.submit` got. `numbers`, int64 [n], are the requests with new tokens,
    each at most once. `token_ids`, integers [sum of counts], are the new tokens in the order of `numbers`; they include
    an end token. `counts`, integers [n], is the number of new tokens of each request; None if that is 1 for all.
    `ends` are the requests that ended with this step, after their tokens. `logprobs` is keyed by request number and has
    entries only for requests that asked for logprobs. `begun` has the times (monotonic, in seconds) at which requests
    left the queue, in the step with their first tokens or an earlier one; the first time of a request counts.
    """

    numbers: IntArray
    token_ids: IntArray
    counts: IntArray | None = None
    ends: Sequence[RequestEnd] = ()
    logprobs: Mapping[int, RequestLogprobs] = field(default_factory=dict)
    begun: Mapping[int, float] = field(default_factory=dict)


NO_INTEGERS: IntArray = np.empty(0, np.int64)
"""For steps without tokens, which only end requests."""


def ends_only(ends: Sequence[RequestEnd]) -> EngineStep:
    """Returns a step that ends requests and has no tokens."""
    return EngineStep(NO_INTEGERS, NO_INTEGERS, ends=ends)


@dataclass(frozen=True)
class TokenChunk:
    """Output of engine steps for one request that decode sends to postprocess together. `index` counts chunks from 0.

    The first chunk carries the request's text options, and the prompt's logprobs if requested. The last one carries
    the finish reason or the error. Logprobs are as in RequestLogprobs. `ack_address` is the address to which
    postprocess sends an ack for the chunk (flow_control.py).
    """

    key: str
    index: int
    token_ids: tuple[int, ...]
    text_options: TextOptions | None = None
    finish_reason: FinishReason | None = None
    error: PipelineError | None = None
    ack_address: str | None = None
    logprobs: tuple[float | None, ...] = ()
    top_logprobs: tuple[TopLogprobs, ...] = ()
    prompt_logprobs: PromptLogprobs | None = None

    @property
    def is_final(self) -> bool:
        return self.finish_reason is not None or self.error is not None


@dataclass(slots=True)  # one is created for each event of each stream, and a frozen one takes 1 µs longer
class TextChunk:
    """New text of one request, for the front end. Never changed after it is created.

    `completion_tokens` counts all tokens so far, including these. `token_ids` are the new ones, if requested.
    `prompt_tokens` is set on the first chunk and the last. Only the last chunk has a finish reason.

    `logprobs_json` is OpenAI's `logprobs` object of the tokens whose text this chunk contains. `token_logprobs` are
    those of the new tokens as numbers, if requested; NaN if the engine has none. `cumulative_logprob`, on the last
    chunk, is their sum over the whole completion. `prompt_token_ids` is on the first chunk, if requested.
    """

    text: str
    completion_tokens: int
    token_ids: tuple[int, ...] | None = None
    prompt_tokens: int | None = None
    finish_reason: FinishReason | None = None
    logprobs_json: bytes | None = None
    token_logprobs: tuple[float, ...] | None = None
    cumulative_logprob: float | None = None
    prompt_token_ids: tuple[int, ...] | None = None

    @property
    def is_silent(self) -> bool:
        """Whether the chunk has nothing new, because text is held back or the request is already over."""
        return not (self.text or self.token_ids or self.finish_reason)

    @property
    def is_plain(self) -> bool:
        """Whether the chunk is only text and a count, as most chunks are."""
        return (
            self.prompt_tokens is None
            and self.finish_reason is None
            and self.token_ids is None
            and self.logprobs_json is None
            and self.token_logprobs is None
            and self.cumulative_logprob is None
            and self.prompt_token_ids is None
        )
