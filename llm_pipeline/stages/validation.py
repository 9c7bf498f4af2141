"""Checks the values that need no tokenizer: ranges, lengths, ids of the vocabulary.

Preprocess makes them for every client, also for those of Triton's own gRPC and HTTP. The front end checks the same
ranges before, from the same table of fields, so that invalid requests cost Triton nothing.
"""

from __future__ import annotations

import hashlib
import math
import secrets
from collections.abc import Collection, Sequence
from itertools import pairwise

from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.protocol.field_kinds import NumberField
from llm_pipeline.protocol.fields import (
    MAX_BIAS,
    MAX_BIASED_TOKENS,
    MAX_STOP_TOKEN_IDS,
    MAX_TENANT_CHARACTERS,
    SAMPLING_NUMBERS,
    TRUNCATION_SIDES,
    limits_of,
    range_of,
)
from llm_pipeline.protocol.messages import GUIDE_PARAM, CompletionParameters, SamplingParams


def checked_sampling(
    parameters: CompletionParameters,
    *,
    min_tokens: int,
    logit_bias: tuple[tuple[int, float], ...],
    bad_words: tuple[tuple[int, ...], ...],
) -> SamplingParams:
    """The sampling params of a request. The keyword arguments were checked by the caller.

    Raises PipelineError (400) for a number out of range.
    """
    numbers = {field.name: _in_range(field, getattr(parameters, field.name)) for field in SAMPLING_NUMBERS}
    top_k = 0 if parameters.top_k is None else parameters.top_k
    if top_k < -1:
        raise out_of_range("top_k", top_k, "at least -1, where -1 and 0 mean off")
    is_greedy = numbers["temperature"] == 0 or numbers["top_p"] == 0 or top_k == 1
    # TensorRT-LLM rejects top_p 0, and its default seed is a constant: both are resolved here, for every executor.
    numbers["temperature"] = numbers["temperature"] or 1.0
    numbers["top_p"] = numbers["top_p"] or 1.0
    return SamplingParams(
        is_greedy=is_greedy,
        top_k=max(top_k, 0),
        seed=secrets.randbits(64) if parameters.seed is None else parameters.seed % 2**64,
        min_tokens=min_tokens,
        logit_bias=logit_bias,
        bad_words=bad_words,
        **numbers,
    )


def _in_range(field: NumberField, value: float | None) -> float:
    if value is None:
        assert field.neutral is not None
        return field.neutral
    check_range(field, value)
    return value


def check_range(field: NumberField, value: float) -> None:
    """Raises PipelineError (400) if `value` is outside the field's range, or NaN."""
    if field.range is not None and value not in field.range:
        raise out_of_range(field.param or field.name, value, str(field.range))


def check_texts(name: str, texts: Sequence[str]) -> None:
    """Raises PipelineError (400) if a list of strings is too long, or one of them empty or too long."""
    limits = limits_of(name)
    if len(texts) > limits.max_count:
        raise _too_many(name, len(texts), "strings", limits.max_count)
    for text in texts:
        if not text:
            raise PipelineError(ErrorCode.VALUE_OUT_OF_RANGE, f"{name} must not contain empty strings.", param=name)
        if len(text) > limits.max_characters:
            raise PipelineError(
                ErrorCode.VALUE_OUT_OF_RANGE,
                f"A string of {name} has {len(text)} characters. At most {limits.max_characters} are allowed.",
                param=name,
            )


def check_logit_bias(biases: Sequence[tuple[int, float]], vocab_size: int) -> None:
    """Raises PipelineError (400) for too many tokens, unknown ids and values out of range."""
    if len(biases) > MAX_BIASED_TOKENS:
        raise _too_many("logit_bias", len(biases), "tokens", MAX_BIASED_TOKENS)
    check_ids("logit_bias", [token_id for token_id, _ in biases], vocab_size)
    for _, bias in biases:
        if math.isnan(bias) or not -MAX_BIAS <= bias <= MAX_BIAS:
            raise out_of_range("logit_bias", bias, f"from {-MAX_BIAS:g} to {MAX_BIAS:g} for each token")


def check_stop_token_ids(ids: Sequence[int], vocab_size: int) -> None:
    """Raises PipelineError (400) for too many or unknown ids."""
    if len(ids) > MAX_STOP_TOKEN_IDS:
        raise _too_many("stop_token_ids", len(ids), "ids", MAX_STOP_TOKEN_IDS)
    check_ids("stop_token_ids", ids, vocab_size)


def check_num_logprobs(count: int | None) -> None:
    """Raises PipelineError (400), under the clients' name `logprobs`, for a number out of range."""
    if count is not None and count not in (allowed := range_of("num_logprobs")):
        raise out_of_range("logprobs", count, str(allowed))


def check_truncation(count: int | None, side: str | None) -> None:
    """Raises PipelineError (400) unless `count` is unset, positive or -1, and `side` is unset or one of the two."""
    if side is not None and side not in TRUNCATION_SIDES:
        raise PipelineError(
            ErrorCode.VALUE_OUT_OF_RANGE,
            f"truncation_side must be {' or '.join(TRUNCATION_SIDES)}: where tokens of the prompt are dropped.",
            param="truncation_side",
        )
    if count is not None and count < 1 and count != -1:
        raise out_of_range("truncate_prompt_tokens", count, "at least 1, or -1 for the room that the context leaves")


def check_ids(name: str, ids: Sequence[int], vocab_size: int) -> None:
    """Raises PipelineError (400) if an id is outside the vocabulary."""
    if ids and (min(ids) < 0 or max(ids) >= vocab_size):
        wrong = next(token_id for token_id in ids if not 0 <= token_id < vocab_size)
        raise PipelineError(
            ErrorCode.VALUE_OUT_OF_RANGE,
            f"Token id {wrong} is outside the vocabulary. This model's ids range from 0 to {vocab_size - 1}.",
            param=name,
        )


def check_guided(parameters: CompletionParameters, eos_token_ids: Sequence[int]) -> None:
    """Raises PipelineError (400) for fields that could leave a guided text without an allowed token or without an end.

    A guided text ends with the first of `eos_token_ids`: guided decoding allows only that one.
    """
    if not eos_token_ids:
        raise PipelineError(
            ErrorCode.UNSUPPORTED_PARAMETER,
            "Structured output is not supported by this model: it has no end token. Omit it.",
            param=GUIDE_PARAM,
        )
    conflicts = {
        "bad_words": parameters.bad_words,
        "min_tokens": parameters.min_tokens,
        "ignore_eos": parameters.ignore_eos,
        "end_id": parameters.end_id is not None and parameters.end_id != eos_token_ids[0],
        "suffix": parameters.suffix,
    }
    for name, value in conflicts.items():
        if value:
            message = f"{name} is not supported with structured output. Omit one of them."
            raise PipelineError(ErrorCode.UNSUPPORTED_PARAMETER, message, param=name)


def urgency_of(priority: int | None) -> float:
    """The urgency for vLLM's priority (any integer, lower first, default 0): 0 to 1, higher first, 0.5 for 0."""
    return 0.5 if priority is None else 0.5 - priority / (2 * (1 + abs(priority)))


def checked_tenant(tenant: str | None) -> str:
    """Returns the tenant, empty if it is unset. Raises PipelineError (400) if it is too long."""
    if tenant is None:
        return ""
    if len(tenant) > MAX_TENANT_CHARACTERS:
        raise _too_many("tenant", len(tenant), "characters", MAX_TENANT_CHARACTERS)
    return tenant


def checked_tenant_share(share: int | None) -> int:
    """Returns the share, 1 if it is unset. Raises PipelineError (400) if it is out of range."""
    if share is None:
        return 1
    if share not in (allowed := range_of("tenant_share")):
        raise out_of_range("tenant_share", share, str(allowed))
    return share


def check_adapter(name: str | None, known: Collection[str]) -> None:
    """Raises PipelineError (404) for a LoRA adapter that the executor does not have."""
    if name is not None and name not in known:
        raise PipelineError(
            ErrorCode.MODEL_NOT_FOUND, "This model has no LoRA adapter of the requested name.", param="model"
        )


def cache_salt_of(tenant: str | None) -> int | None:
    """Returns the uint64 that separates a tenant's KV cache from others'; None for requests without a tenant.

    It is as hard to guess as the tenant, which the front end makes with a secret.
    """
    if not tenant:
        return None
    return int.from_bytes(hashlib.blake2b(tenant.encode(), digest_size=8).digest(), "little")


def _too_many(name: str, count: int, unit: str, limit: int) -> PipelineError:
    message = f"{name} has {count} {unit}. At most {limit} are allowed."
    return PipelineError(ErrorCode.VALUE_OUT_OF_RANGE, message, param=name)


def out_of_range(name: str, value: float, allowed: str) -> PipelineError:
    """The error for a value that is out of range."""
    shown = value if isinstance(value, int) else f"{value:g}"
    return PipelineError(ErrorCode.VALUE_OUT_OF_RANGE, f"{name} is {shown}. It must be {allowed}.", param=name)


def checked_spans(bounds: Sequence[int], length: int) -> list[tuple[int, int]]:
    """The starts and ends of plain spans as pairs. Raises PipelineError (400) unless they ascend within the text."""
    is_even = len(bounds) % 2 == 0
    if is_even and all(low <= high for low, high in pairwise((0, *bounds, length))):
        return list(zip(bounds[::2], bounds[1::2], strict=True))
    raise PipelineError(
        ErrorCode.VALUE_OUT_OF_RANGE,
        f"plain_spans must be starts and ends in ascending order, from 0 to the {length} characters of the prompt.",
        param="plain_spans",
    )
