"""The kinds of request fields: numbers, flags, texts, lists, pairs and guides, and how each one travels as tensors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any, TypeAlias

from llm_pipeline.protocol.arrays import (
    Array,
    TensorReader,
    TensorSpec,
    array,
    decode_text,
    read_text,
    read_values,
    value_in,
    values_in,
)
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.protocol.executor_names import ExecutorName
from llm_pipeline.protocol.messages import Guide, GuideType

NamedArrays: TypeAlias = list[tuple[TensorSpec, Array]]


@dataclass(frozen=True)
class Range:
    """Inclusive bounds of a number."""

    low: float
    high: float

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high  # false for NaN

    def __str__(self) -> str:
        return f"from {_exact(self.low)} to {_exact(self.high)}"


def _exact(bound: float) -> str:
    return str(bound) if isinstance(bound, int) else f"{bound:g}"


@dataclass(frozen=True)
class RequestField(ABC):
    """One field of CompletionParameters and its tensor. A value equal to `default` is not sent: each tensor costs time.

    `executors` are those that honor the field; None if all do, or if it never reaches one.
    """

    name: str
    tensor: TensorSpec
    _: KW_ONLY
    default: Any = None
    executors: tuple[ExecutorName, ...] | None = None

    @property
    def tensors(self) -> tuple[TensorSpec, ...]:
        """All tensors of the field, under their current names."""
        return (self.tensor,)

    def encode(self, value: Any, arrays: NamedArrays) -> None:
        """Appends the tensors for a value other than the default."""
        arrays.append((self.tensor, array(self.tensor, value)))

    @abstractmethod
    def decode(self, sent: Array, read: TensorReader) -> Any:
        """The value in the field's tensor, or None for padding. `read` reads its second tensor, if there is one.

        Raises PipelineError (400) with the tensor's name if it is malformed.
        """


@dataclass(frozen=True)
class NumberField(RequestField):
    """An integer or a float.

    `range` is what clients may send; `param` is their name for the field in errors, if it differs from `name`.
    `neutral` is the value in SamplingParams of a request without the field; set it for numbers that preprocess checks
    against `range` and copies to SamplingParams under the same name. `to_wire` fits a value into the tensor's dtype.
    `former_name` is the tensor's name in earlier releases of NVIDIA's models.
    """

    _: KW_ONLY
    range: Range | None = None
    param: str = ""
    neutral: float | None = None
    to_wire: Callable[[Any], Any] | None = None
    former_name: str | None = None

    def under_former_name(self) -> NumberField | None:
        return None if self.former_name is None else replace(self, tensor=replace(self.tensor, name=self.former_name))

    def encode(self, value: Any, arrays: NamedArrays) -> None:
        wire_value = value if self.to_wire is None else self.to_wire(value)
        arrays.append((self.tensor, array(self.tensor, wire_value)))

    def decode(self, sent: Array, read: TensorReader) -> Any:
        return value_in(sent, self.tensor)


@dataclass(frozen=True)
class FlagField(RequestField):
    """A boolean. `is_inverted`: the tensor is true where the field is false."""

    _: KW_ONLY
    default: bool = False
    is_inverted: bool = False

    def encode(self, value: bool, arrays: NamedArrays) -> None:
        arrays.append((self.tensor, array(self.tensor, value is not self.is_inverted)))

    def decode(self, sent: Array, read: TensorReader) -> bool:
        return bool(value_in(sent, self.tensor)) is not self.is_inverted


@dataclass(frozen=True)
class TextField(RequestField):
    """A string."""

    def decode(self, sent: Array, read: TensorReader) -> str:
        return decode_text(value_in(sent, self.tensor), self.tensor)


@dataclass(frozen=True)
class TextsField(RequestField):
    """A list of non-empty strings, with limits on their number and on the length of each."""

    _: KW_ONLY
    default: tuple[str, ...] = ()
    max_count: int
    max_characters: int

    def decode(self, sent: Array, read: TensorReader) -> tuple[str, ...] | None:
        return _texts_in(sent, self.tensor)


@dataclass(frozen=True)
class IdsField(RequestField):
    """A list of token ids."""

    def decode(self, sent: Array, read: TensorReader) -> tuple[int, ...]:
        return tuple(values_in(sent, self.tensor))


@dataclass(frozen=True)
class BiasField(RequestField):
    """Pairs of a token id (INT32) or a text (BYTES) and a number, which travel as two tensors of the same length."""

    weights: TensorSpec
    _: KW_ONLY
    default: tuple[tuple[Any, float], ...] = ()

    @property
    def tensors(self) -> tuple[TensorSpec, ...]:
        return (self.tensor, self.weights)

    def encode(self, value: Sequence[tuple[Any, float]], arrays: NamedArrays) -> None:
        keys, weights = zip(*value, strict=True)
        arrays.append((self.tensor, array(self.tensor, keys)))
        arrays.append((self.weights, array(self.weights, weights)))

    def decode(self, sent: Array, read: TensorReader) -> tuple[tuple[Any, float], ...] | None:
        is_text = self.tensor.dtype == "BYTES"
        keys: Sequence[Any] | None = (_texts_in if is_text else values_in)(sent, self.tensor)
        weights = read_values(read, self.weights) or ()
        if keys is None:
            return None  # NVIDIA's clients pad the weights as they pad the texts
        if len(keys) != len(weights):
            raise PipelineError(
                ErrorCode.INVALID_TYPE,
                f"{self.tensor.name} has {len(keys)} values and {self.weights.name} has {len(weights)}. "
                "Send the same number of both.",
                param=self.weights.name,
            )
        return tuple(zip(keys, weights, strict=True))


@dataclass(frozen=True)
class GuideField(RequestField):
    """A guide: its type, and its source unless the type needs none."""

    source: TensorSpec

    @property
    def tensors(self) -> tuple[TensorSpec, ...]:
        return (self.tensor, self.source)

    def encode(self, value: Guide, arrays: NamedArrays) -> None:
        arrays.append((self.tensor, array(self.tensor, value.type.value)))
        if value.source is not None:
            arrays.append((self.source, array(self.source, value.source)))

    def decode(self, sent: Array, read: TensorReader) -> Guide | None:
        kind = decode_text(value_in(sent, self.tensor), self.tensor)
        if not kind:
            return None
        try:
            return Guide(GuideType(kind), read_text(read, self.source))
        except ValueError:
            known = ", ".join(known.value for known in GuideType)
            raise PipelineError(
                ErrorCode.VALUE_OUT_OF_RANGE,
                f"{self.tensor.name} has an unknown value. Supported values: {known}.",
                param=self.tensor.name,
            ) from None


def _texts_in(sent: Array, spec: TensorSpec) -> tuple[str, ...] | None:
    """A list of strings, or None if empty. NVIDIA's clients pad an empty list with one empty string."""
    texts = values_in(sent, spec)
    return None if texts in ([], [b""]) else tuple(decode_text(text, spec) for text in texts)
