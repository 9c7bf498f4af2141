"""Converts the parts of a checkpoint to the layout of a CPU engine: fused matrices in float16 or int8.

Matrices are [outputs, inputs], vectors [size] in float32. int8 is symmetric and weight-only: one float32 scale per
output row, [outputs, 1]; activations stay float32. The embedding stays float16, because looking up a row costs the same
in both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from build_engine.cpu.architectures import LAYER_NORMS, OPTIONAL_NORMS
from build_engine.cpu.checkpoint import Checkpoint, ModelParameters
from build_engine.errors import EngineRefusedError
from build_engine.progress import Advance
from llm_pipeline.executors.cpu.engine.weights import ModelShape, Weights

FP16, INT8 = "fp16", "int8"
_INT8_MAX = 127
WeightArray: TypeAlias = "npt.NDArray[Any]"
_PRODUCTS = {
    "qkv": ("query", "key", "value"),
    "attention_output": ("attention_output",),
    "gate_up": ("gate", "up"),
    "down": ("down",),
}


def convert_weights(checkpoint: Checkpoint, advance: Advance) -> Weights:
    """All weights with matrices in float16. Calls `advance` with the float16 size of each tensor in bytes.

    Raises EngineRefusedError if a weight overflows float16, or a tensor is missing or has an unexpected shape.
    """
    parameters = checkpoint.parameters
    tensors: dict[str, WeightArray] = {}
    for name, tensor in _engine_tensors(checkpoint, advance):
        if tensor.ndim > 1:
            with np.errstate(over="ignore"):  # checked below
                tensor = tensor.astype(np.float16)
        if not np.isfinite(tensor).all():
            raise EngineRefusedError(f"Tensor {name} contains values outside the range of fp16. Use another model.")
        tensors[name] = np.ascontiguousarray(tensor)
    return Weights(_engine_shape(parameters), tensors | _rope_tensors(parameters))


def quantize_weights(weights: Weights) -> Weights:
    """The same model with every matrix but the embedding in int8."""
    tensors = dict(weights.tensors)
    tensors.setdefault("vocabulary.weight", tensors["embedding.weight"])
    for name in [name for name, tensor in tensors.items() if tensor.ndim > 1 and name != "embedding.weight"]:
        values = tensors[name].astype(np.float32)
        scale = np.abs(values).max(axis=1, keepdims=True) / np.float32(_INT8_MAX)
        scale[scale == 0] = 1  # a row of zeros, which any scale represents
        tensors[name] = np.rint(values / scale).astype(np.int8)
        tensors[name.removesuffix(".weight") + ".scale"] = scale
    return Weights(weights.shape, tensors)


def _engine_shape(parameters: ModelParameters) -> ModelShape:
    return replace(parameters.shape, rope_scale=parameters.rope.scale)


def _rope_tensors(parameters: ModelParameters) -> dict[str, WeightArray]:
    """The frequencies that the engine can't compute from the base alone."""
    tensors: dict[str, WeightArray] = {}
    if parameters.rope.is_scaled:
        tensors["rope.frequencies"] = parameters.rope.frequencies.astype(np.float32)
    if parameters.local_rope:
        tensors["local_rope.frequencies"] = parameters.local_rope.frequencies.astype(np.float32)
    return tensors


def _engine_tensors(checkpoint: Checkpoint, advance: Advance) -> Iterator[tuple[str, WeightArray]]:
    """Names and float32 values of the engine's tensors."""

    def read(part: str) -> WeightArray:
        tensor = checkpoint.read(part)
        advance(2 * tensor.size)
        if tensor.shape != (expected := _expected_shape(part, checkpoint)):
            raise EngineRefusedError(
                f"{checkpoint.label}: the tensor for {part} has the shape {tensor.shape}, but the model's parameters "
                f"require {expected}. Download the model again."
            )
        return tensor

    for name in ("embedding.weight", "norm.weight", "vocabulary.weight"):
        if name in checkpoint.parts:
            yield name, read(name)
    for number in range(checkpoint.parameters.shape.layers):
        yield from _layer(f"layers.{number}", checkpoint, read)


def _layer(layer: str, checkpoint: Checkpoint, read: Callable[[str], WeightArray]) -> Iterator[tuple[str, WeightArray]]:
    for name in (*LAYER_NORMS, *OPTIONAL_NORMS):
        if (part := f"{layer}.{name}.weight") in checkpoint.parts:
            yield part, read(part)
    for name, origins in _PRODUCTS.items():
        yield f"{layer}.{name}.weight", np.concatenate([read(f"{layer}.{origin}.weight") for origin in origins])
        biases = [f"{layer}.{origin}.bias" for origin in origins]
        if any(bias in checkpoint.parts for bias in biases):
            yield f"{layer}.{name}.bias", np.concatenate([read(bias) for bias in biases])


def _expected_shape(part: str, checkpoint: Checkpoint) -> tuple[int, ...]:
    parameters, shape = checkpoint.parameters, checkpoint.parameters.shape
    heads, kv_heads = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    matrices = {
        "embedding": (checkpoint.vocab_size, parameters.width),
        "vocabulary": (checkpoint.vocab_size, parameters.width),
        "query": (heads, parameters.width),
        "key": (kv_heads, parameters.width),
        "value": (kv_heads, parameters.width),
        "attention_output": (parameters.width, heads),
        "gate": (parameters.inner, parameters.width),
        "up": (parameters.inner, parameters.width),
        "down": (parameters.width, parameters.inner),
    }
    name, kind = part.split(".")[-2:]
    if name in ("query_norm", "key_norm"):
        return (shape.head_size,)
    if name not in matrices:
        return (parameters.width,)
    return matrices[name] if kind == "weight" else matrices[name][:1]
