"""Converts the tensors of a GGUF file to the layout of a CPU engine: fused matrices in float16 or int8.

Matrices are [outputs, inputs], vectors [size] in float32. int8 is symmetric and weight-only: one float32 scale per
output row, [outputs, 1]; activations stay float32. The embedding stays float16, because looking up a row costs the same
in both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from build_engine.cpu.gguf_model import GgufModel
from build_engine.errors import EngineRefusedError
from build_engine.progress import Advance
from llm_pipeline.executors.cpu.engine.weights import ModelShape, Weights

FP16, INT8 = "fp16", "int8"
_INT8_MAX = 127
WeightArray: TypeAlias = "npt.NDArray[Any]"
_NORMS = {
    "attention_norm": "attn_norm",
    "mlp_norm": "ffn_norm",
    "query_norm": "attn_q_norm",
    "key_norm": "attn_k_norm",
}
_PRODUCTS = {
    "qkv": ("attn_q", "attn_k", "attn_v"),
    "attention_output": ("attn_output",),
    "gate_up": ("ffn_gate", "ffn_up"),
    "down": ("ffn_down",),
}


def convert_weights(model: GgufModel, advance: Advance) -> Weights:
    """All weights with matrices in float16. Calls `advance` with the float16 size of each tensor in bytes.

    Raises EngineRefusedError if a weight overflows float16 or a tensor is missing.
    """
    shape = model_shape(model)
    tensors: dict[str, WeightArray] = {}
    for name, tensor in _engine_tensors(model, shape, advance):
        if tensor.ndim > 1:
            with np.errstate(over="ignore"):  # checked below
                tensor = tensor.astype(np.float16)
        if not np.isfinite(tensor).all():
            raise EngineRefusedError(f"Tensor {name} contains values outside the range of fp16. Use another model.")
        tensors[name] = np.ascontiguousarray(tensor)
    return Weights(shape, tensors)


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


def model_shape(model: GgufModel) -> ModelShape:
    arch = model.architecture
    heads = model.number(f"{arch}.attention.head_count")
    head_size = model.value(f"{arch}.attention.key_length") or model.number(f"{arch}.embedding_length") // heads
    return ModelShape(
        layers=model.number(f"{arch}.block_count"),
        heads=heads,
        kv_heads=int(model.value(f"{arch}.attention.head_count_kv") or heads),
        head_size=int(head_size),
        norm_epsilon=float(model.value(f"{arch}.attention.layer_norm_rms_epsilon") or 1e-5),
        rope_base=float(model.value(f"{arch}.rope.freq_base") or 10000.0),
    )


def _engine_tensors(model: GgufModel, shape: ModelShape, advance: Advance) -> Iterator[tuple[str, WeightArray]]:
    """Names and float32 values of the engine's tensors."""
    names = {tensor.name for tensor in model.tensors}

    def read(name: str) -> WeightArray:
        tensor = model.dequantized(name)
        advance(2 * tensor.size)
        return _rows_in_halves(tensor, name, shape) if model.architecture == "llama" else tensor

    for name, origin in (("embedding", "token_embd"), ("norm", "output_norm"), ("vocabulary", "output")):
        if f"{origin}.weight" in names:
            yield f"{name}.weight", read(f"{origin}.weight")
    for number in range(shape.layers):
        yield from _layer(f"layers.{number}", f"blk.{number}", names, read)


def _layer(
    layer: str, block: str, names: set[str], read: Callable[[str], WeightArray]
) -> Iterator[tuple[str, WeightArray]]:
    for name, origin in _NORMS.items():
        if f"{block}.{origin}.weight" in names:
            yield f"{layer}.{name}.weight", read(f"{block}.{origin}.weight")
    for name, origins in _PRODUCTS.items():
        yield f"{layer}.{name}.weight", np.concatenate([read(f"{block}.{origin}.weight") for origin in origins])
        biases = [f"{block}.{origin}.bias" for origin in origins]
        if any(bias in names for bias in biases):
            if missing := [bias for bias in biases if bias not in names]:
                raise EngineRefusedError(f"Tensor {missing[0]} is missing. Download the model again.")
            yield f"{layer}.{name}.bias", np.concatenate([read(bias) for bias in biases])


def _rows_in_halves(tensor: WeightArray, name: str, shape: ModelShape) -> WeightArray:
    """Reorders the query and key rows of a llama model, [heads * head_size, ...], for rotary embeddings in halves.

    llama.cpp stores them for rotary embeddings of adjacent pairs.
    """
    heads = {"attn_q": shape.heads, "attn_k": shape.kv_heads}.get(name.split(".")[-2])
    if heads is None:
        return tensor
    return tensor.reshape(heads, shape.head_size // 2, 2, -1).swapaxes(1, 2).reshape(tensor.shape)
