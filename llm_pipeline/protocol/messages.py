"""The frozen messages that travel between stages, in the order in which a request meets them.

HTTP -> CompletionParameters -> (preprocess) -> GenerationRequest -> (executor) -> StepOutput -> (decode) -> TokenChunk
-> (postprocess) -> TextChunk -> SSE. Nothing here knows Triton, HTTP or an engine.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TypeAlias

from llm_pipeline.protocol.errors import PipelineError

GUIDE_PARAM = "guided_decoding_guide"
"""What errors about a guide name; the front end puts its client's own name for it in that place."""


class FinishReason(str, Enum):
    """Why a request ended. CANCELLED never reaches a client: whoever cancelled is not listening any more."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class CompletionParameters:
    """One prompt and how to complete it, as the client asked for it; None means the client left it out.

    Exactly one of `text` and `token_ids` is set. `request_key` names the request inside the pipeline: ours, unique,
    and never the client's request id, which may repeat. `seed` is an int64 as clients write it.
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
    return_tokens_as_token_ids: bool = False  # in lists of log probs; goes with return_token_ids
    stream: bool = False
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()  # token id, what to add to its logit
    bias_words: tuple[tuple[str, float], ...] = ()  # the same for every token of a text
    bad_words: tuple[str, ...] = ()
    min_tokens: int | None = None
    ignore_eos: bool = False
    end_id: int | None = None  # instead of the model's own end tokens
    stop_token_ids: tuple[int, ...] = ()
    truncate_prompt_tokens: int | None = None  # keep the last ones; -1: as many as the context takes
    add_special_tokens: bool = True
    priority: int | None = None  # as vLLM has it: any integer, lower goes first, 0 when left out
    num_logprobs: int | None = None  # of each token and of so many most likely ones, in OpenAI's form
    return_logprob_values: bool = False  # of each token, as numbers
    echo: bool = False  # the prompt is in front of the text
    suffix: str | None = None  # what comes after the completion
    guide: Guide | None = None
    guide_param: str = GUIDE_PARAM  # the client's name for it; for errors, and not sent on


@dataclass(frozen=True)
class SamplingParams:
    """How to pick each token; every value is set, in range, and normalised.

    Greedy means temperature 0, top_p 0 or top_k 1 was asked for; temperature, top_k, top_p, min_p and seed then have no
    effect. `top_k` 0 is off. `seed` is a uint64; requests without one got a random one.

    What stands after `seed` has neutral defaults; an executor that can't do one refuses it by name (executors/base.py).
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
    min_tokens: int = 0  # no end token before as many
    logit_bias: tuple[tuple[int, float], ...] = ()  # token id, what to add to its logit
    bad_words: tuple[tuple[int, ...], ...] = ()  # token sequences that must not appear


class GuideType(str, Enum):
    """What a guide is written in. JSON is any JSON value, without a text."""

    JSON = "json"
    JSON_SCHEMA = "json_schema"
    REGEX = "regex"
    EBNF_GRAMMAR = "ebnf_grammar"
    STRUCTURAL_TAG = "structural_tag"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class Guide:
    """What the generated text must follow."""

    type: GuideType
    source: str | None = None  # the schema, the expression, the grammar


@dataclass(frozen=True)
class TextOptions:
    """What postprocess needs to know about a request; rides along with its first chunk.

    With `min_tokens`, stop strings match only in what comes after so many tokens. `shown_end_ids` are end tokens whose
    text is shown when a request ends with one.

    `log_probs` is how many most likely tokens are told beside each token's own log prob, None for no such list;
    `returns_values` asks for the bare numbers. `echo_ids` is the prompt when it is to be in front of the text, and
    `echo_text` how its client wrote it, unless that was in ids.

    `context_ids` are the last tokens of a token-id prompt when it may end inside a character (else empty): the
    generated bytes may complete that character. `is_text_start` says that the prompt holds no text, only special
    tokens, so that a SentencePiece-style tokenizer drops the first space, as it would when decoding the whole.
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


@dataclass(frozen=True)
class GenerationRequest:
    """A validated request: its type says that nothing downstream needs to check it again.

    `prompt_ids` fit the vocabulary, and `len(prompt_ids) + max_tokens` fits the engine's context. `max_tokens` 0 makes
    no token; executors get it only with `prompt_log_probs`.
    """

    key: str
    prompt_ids: tuple[int, ...]
    max_tokens: int
    sampling: SamplingParams
    stop_token_ids: tuple[int, ...] = ()  # any of these ends the request with STOP; it is the last token handed back
    text_options: TextOptions = field(default_factory=TextOptions)
    # An executor may end the request with STOP as soon as it makes one of these; whether a stop string is in the text
    # remains postprocess's word, because text tokenizes in more than one way.
    stop_token_sequences: tuple[tuple[int, ...], ...] = ()
    return_logprobs: bool = False  # of each token handed back
    num_top_logprobs: int = 0  # with them, those of so many most likely tokens at each place
    return_prompt_logprobs: bool = False  # with them, those of the prompt's tokens, in the first step
    guide: Guide | None = None
    urgency: float = 0.5  # 0 to 1; higher goes first
    time_limit_s: float | None = None  # from submit; then the request fails with DEADLINE_EXCEEDED
    cache_salt: int | None = None  # uint64; requests with different salts share no KV cache


TopLogprobs: TypeAlias = "tuple[tuple[int, ...], tuple[float, ...]]"
"""The most likely tokens at one place, most likely first: their ids, and their log probs."""


@dataclass(frozen=True)
class PromptLogprobs:
    """Log probs of a prompt's tokens from the second on: nothing comes before the first, so it has none.

    `tops` goes with `values`, or is empty when nobody asked for the most likely tokens.
    """

    values: tuple[float | None, ...] = ()
    tops: tuple[TopLogprobs, ...] = ()


@dataclass(frozen=True)
class StepOutput:
    """What one engine step made for one request: no, one or several new tokens, and at most one ending.

    `token_ids` includes the end-of-sequence token. After a step with a finish reason or an error, no more come.
    `log_probs` goes with `token_ids` when the request asked for it; None where the engine has none to give. So does
    `top_log_probs`, when the request asked for some.
    """

    key: str
    token_ids: tuple[int, ...] = ()
    finish_reason: FinishReason | None = None
    error: PipelineError | None = None
    logprobs: tuple[float | None, ...] = ()
    top_logprobs: tuple[TopLogprobs, ...] = ()
    prompt_logprobs: PromptLogprobs | None = None

    @property
    def is_final(self) -> bool:
        return self.finish_reason is not None or self.error is not None


@dataclass(frozen=True)
class TokenChunk:
    """Steps of one request that travel together from decode to postprocess. `index` counts them from 0.

    The first carries the request's text options, and the prompt's log probs if those were asked for. The last carries
    its finish reason or its error. Log probs are as in StepOutput. `ack_address` is where postprocess says that it has
    handled the chunk (flow_control.py).
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


@dataclass(frozen=True)
class TextChunk:
    """New text of one request, as the front end gets it.

    `completion_tokens` counts all tokens so far, these included. `token_ids` are the new ones when they were asked
    for. `prompt_tokens` is set on the first chunk and on the last. Exactly one chunk has a finish reason: the last.

    `log_probs` is JSON: OpenAI's `logprobs` object of the tokens whose text this chunk holds. `token_log_probs` are the
    numbers of the new tokens when those were asked for, NaN where there is none; `cum_log_prob`, on the last chunk, is
    the sum over the whole completion.
    """

    text: str
    completion_tokens: int
    token_ids: tuple[int, ...] | None = None
    prompt_tokens: int | None = None
    finish_reason: FinishReason | None = None
    logprobs_json: bytes | None = None
    token_logprobs: tuple[float, ...] | None = None
    cumulative_logprob: float | None = None

    @property
    def is_silent(self) -> bool:
        """Whether there is nothing new in it: text is held back, or the request is over already."""
        return not (self.text or self.token_ids or self.finish_reason)
