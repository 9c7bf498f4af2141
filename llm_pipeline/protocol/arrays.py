"""Tensors of one Triton request as numpy arrays: their specs, and how values are written to and read from them.

Every model has `max_batch_size` > 0, so each array has a leading batch dimension of 1: shape [1, n].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from llm_pipeline.protocol.errors import ErrorCode, PipelineError

Array: TypeAlias = npt.NDArray[Any]

DType = Literal["BYTES", "INT32", "UINT64", "FP32", "BOOL"]
NUMPY_TYPES: dict[DType, np.dtype[Any]] = {
    "BYTES": np.dtype(np.object_),
    "INT32": np.dtype(np.int32),
    "UINT64": np.dtype(np.uint64),
    "FP32": np.dtype(np.float32),
    "BOOL": np.dtype(np.bool_),
}


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of a model: `dims` without the batch dimension, -1 for a free length."""

    name: str
    dtype: DType
    dims: tuple[int, ...] = (1,)
    optional: bool = True


class TensorReader(Protocol):
    """Returns one input of a Triton request as an array with its batch dimension, or None if it was not sent."""

    def __call__(self, name: str, /) -> Array | None: ...


def array(spec: TensorSpec, values: Any) -> Array:
    """`values` (a scalar or a flat sequence) as the array of one request: shape [1, n]."""
    if spec.dtype == "BYTES":
        items = [values] if isinstance(values, (str, bytes)) else values
        values = [item.encode() if isinstance(item, str) else item for item in items]
    return np.array(values, NUMPY_TYPES[spec.dtype], ndmin=2)


def values_in(sent: Array, spec: TensorSpec) -> list[Any]:
    """All values of a tensor that was sent. Raises PipelineError (400) if it contains more than one request's batch."""
    if sent.ndim > 1 and sent.shape[0] != 1:
        raise PipelineError(
            ErrorCode.INVALID_TYPE,
            f"{spec.name} has a batch dimension of {sent.shape[0]}. Send one prompt per request.",
            param=spec.name,
        )
    values: list[Any] = sent.reshape(-1).tolist()
    return values


def value_in(sent: Array, spec: TensorSpec) -> Any:
    """The value of a tensor that was sent. Raises PipelineError (400) unless it contains exactly one."""
    if sent.size == 1:
        return sent.item()
    count = len(values_in(sent, spec))
    raise PipelineError(ErrorCode.INVALID_TYPE, f"{spec.name} has {count} values. Send one value.", param=spec.name)


def read_values(read: TensorReader, spec: TensorSpec) -> list[Any] | None:
    """All values of an optional tensor."""
    sent = read(spec.name)
    return None if sent is None else values_in(sent, spec)


def read_value(read: TensorReader, spec: TensorSpec) -> Any:
    """The value of an optional tensor."""
    sent = read(spec.name)
    return None if sent is None else value_in(sent, spec)


def read_flag(read: TensorReader, spec: TensorSpec, default: bool) -> bool:
    value = read_value(read, spec)
    return default if value is None else bool(value)


def read_text(read: TensorReader, spec: TensorSpec) -> str | None:
    """The text of an optional tensor. Raises PipelineError (400) if it is not UTF-8."""
    value = read_value(read, spec)
    return None if value is None else decode_text(value, spec)


def decode_text(value: bytes, spec: TensorSpec) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise PipelineError(ErrorCode.INVALID_TYPE, f"{spec.name} is not valid UTF-8.", param=spec.name) from error
