"""Checks requests against the engine's limits from config.json, and the ranges that upstream checks in C++.

Upstream would reject most of these too, but with messages for its own developers, and some only inside the running
batch, where one over-long input has hung a whole server (NVIDIA/TensorRT-LLM#4441).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from llm_pipeline.protocol.capabilities import CAPABILITIES, Capabilities, check_supported, without_guides
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.protocol.field_kinds import NumberField
from llm_pipeline.protocol.fields import FIELDS_BY_NAME, SAMPLING_EXTENSIONS
from llm_pipeline.protocol.messages import GenerationRequest, Guide, GuideType, SamplingParams

_UINT64_END = 2**64


@dataclass(frozen=True)
class RequestLimits:
    """Limits of the loaded engine."""

    vocab_size: int
    max_seq_len: int  # prompt and completion
    max_prompt_tokens: int  # below max_seq_len if a prompt must fit into one step
    has_guided_decoding: bool
    honors_cache_salt: bool = True
    capabilities: Capabilities = CAPABILITIES["tensorrt_llm"]

    def check(self, request: GenerationRequest) -> None:
        """Raises PipelineError if the request exceeds a limit; the message has the value, the limit and the fix."""
        check_supported(request, self._capabilities)
        self._check_length(request)
        self._check_ids("prompt", request.prompt_ids)
        self._check_sampling(request.sampling)
        _check_min_tokens(request)
        for sequence in request.stop_token_sequences:
            self._check_ids("stop", sequence)
        if request.guide is not None:
            _check_guide(request.guide)
        if not 0 <= request.urgency <= 1:
            raise _out_of_range("priority", request.urgency, "from 0 to 1")
        if request.time_limit_s is not None and not 0 < request.time_limit_s < math.inf:
            raise _out_of_range("time_limit_s", request.time_limit_s, "above 0")
        if request.cache_salt is not None:
            self._check_cache_salt(request.cache_salt)

    @property
    def _capabilities(self) -> Capabilities:
        return self.capabilities if self.has_guided_decoding else without_guides(self.capabilities)

    def _check_length(self, request: GenerationRequest) -> None:
        prompt_tokens = len(request.prompt_ids)
        if request.max_tokens < (0 if request.return_prompt_logprobs else 1):
            raise _out_of_range("max_tokens", request.max_tokens, "at least 1")
        if prompt_tokens + request.max_tokens > self.max_seq_len:
            raise PipelineError(
                ErrorCode.CONTEXT_LENGTH_EXCEEDED,
                f"The prompt has {prompt_tokens} tokens and max_tokens is {request.max_tokens}; together they must not "
                f"exceed {self.max_seq_len}. Shorten one of them.",
                param="prompt",
            )
        if prompt_tokens > self.max_prompt_tokens:
            raise PipelineError(
                ErrorCode.CONTEXT_LENGTH_EXCEEDED,
                f"The prompt has {prompt_tokens} tokens; this server's engine accepts at most "
                f"{self.max_prompt_tokens}. Shorten the prompt.",
                param="prompt",
            )

    def _check_cache_salt(self, salt: int) -> None:
        if not self.honors_cache_salt:
            raise PipelineError(
                ErrorCode.UNSUPPORTED_PARAMETER,
                "cache_salt is not supported by this server's TensorRT-LLM. Omit it.",
                param="cache_salt",
            )
        if not 0 <= salt < _UINT64_END:
            raise _out_of_range("cache_salt", salt, "an unsigned 64-bit number")

    def _check_sampling(self, sampling: SamplingParams) -> None:
        for name in SAMPLING_EXTENSIONS:
            field, value = FIELDS_BY_NAME[name], getattr(sampling, name)
            if isinstance(field, NumberField) and field.range is not None and value not in field.range:
                raise _out_of_range(name, value, str(field.range))
        for token_id, bias in sampling.logit_bias:
            self._check_ids("logit_bias", [token_id])
            if not math.isfinite(bias):
                raise _out_of_range("logit_bias", bias, "a finite number for each token")
        for sequence in sampling.bad_words:
            self._check_ids("bad_words", sequence)

    def _check_ids(self, name: str, ids: Sequence[int]) -> None:
        if not ids:
            raise PipelineError(ErrorCode.VALUE_OUT_OF_RANGE, f"{name} must contain at least one token.", param=name)
        if min(ids) < 0 or max(ids) >= self.vocab_size:
            wrong = next(token_id for token_id in ids if not 0 <= token_id < self.vocab_size)
            raise _out_of_range(name, wrong, f"a token id from 0 to {self.vocab_size - 1}")


def _check_min_tokens(request: GenerationRequest) -> None:
    """Rejects min_tokens for a model with several stop tokens.

    Upstream suppresses `end_id` alone (cpp/tensorrt_llm/kernels/penaltyKernels.cu). Further stop tokens are stop words
    to it, which end a request at any time (kernels/stopCriteriaKernels.cu).
    """
    if request.sampling.min_tokens > 0 and len(request.stop_token_ids) > 1:
        raise PipelineError(
            ErrorCode.UNSUPPORTED_PARAMETER,
            f"min_tokens is not supported for this model: it has {len(request.stop_token_ids)} end tokens, and the "
            "engine can suppress only one. Omit min_tokens.",
            param="min_tokens",
        )


def _check_guide(guide: Guide) -> None:
    if guide.type is not GuideType.JSON and not guide.source:
        raise PipelineError(
            ErrorCode.VALUE_OUT_OF_RANGE, f"A guide of type {guide.type} must not be empty.", param="guide"
        )


def _out_of_range(name: str, value: float, allowed: str) -> PipelineError:
    return PipelineError(ErrorCode.VALUE_OUT_OF_RANGE, f"{name} is {value}; it must be {allowed}.", param=name)
