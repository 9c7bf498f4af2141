"""The field `logit_bias`: OpenAI's map of token ids to the numbers that are added to their logits."""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

from pydantic import PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from llm_pipeline.protocol.errors import ErrorCode
from llm_pipeline.protocol.fields import INT32_MAX, MAX_BIAS, MAX_BIASED_TOKENS

_INT32_DIGITS = 10


def _error(code: ErrorCode, message: str) -> PydanticCustomError:
    return PydanticCustomError(code.value, message)


def _error_at(code: ErrorCode, key: str, message: str) -> PydanticCustomError:
    return PydanticCustomError(code.value, message, {"key": key})


def _logit_bias(value: Any) -> tuple[tuple[int, float], ...]:
    """OpenAI's map of token id (a string, because JSON has no other keys) to the number added to its logit."""
    if not isinstance(value, dict):
        raise _error(ErrorCode.INVALID_TYPE, "must be an object of token ids and numbers")
    if len(value) > MAX_BIASED_TOKENS:
        raise _error(ErrorCode.VALUE_OUT_OF_RANGE, f"must have at most {MAX_BIASED_TOKENS} tokens")
    biases = tuple((_bias_key(name), _bias(name, bias)) for name, bias in value.items())
    if len(dict(biases)) < len(biases):  # such as "7" and "07"
        raise _error(ErrorCode.VALUE_OUT_OF_RANGE, "has two keys for one token id. Write ids without leading zeros")
    return biases


def _bias_key(name: str) -> int:
    if not (name.isascii() and name.isdecimal() and len(name) <= _INT32_DIGITS):
        raise _error_at(ErrorCode.INVALID_TYPE, name, 'is not a token id. Keys are ids, such as "50256"')
    token_id = int(name)
    if token_id > INT32_MAX:
        raise _error_at(ErrorCode.VALUE_OUT_OF_RANGE, name, "is a token id outside the vocabulary")
    return token_id


def _bias(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _error_at(ErrorCode.INVALID_TYPE, name, "must be a number")
    if not -MAX_BIAS <= value <= MAX_BIAS:
        raise _error_at(ErrorCode.VALUE_OUT_OF_RANGE, name, f"must be from {-MAX_BIAS:g} to {MAX_BIAS:g}")
    return float(value)


_LOGIT_BIAS_SCHEMA = {
    "type": "object",
    "propertyNames": {"pattern": "^[0-9]{1,10}$"},
    "additionalProperties": {"type": "number", "minimum": -MAX_BIAS, "maximum": MAX_BIAS},
    "maxProperties": MAX_BIASED_TOKENS,
}

LogitBias: TypeAlias = Annotated[
    tuple[tuple[int, float], ...], PlainValidator(_logit_bias), WithJsonSchema(_LOGIT_BIAS_SCHEMA)
]
