"""Reads a model's parameters from GGUF metadata; the defaults are llama.cpp's."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from build_engine.cpu.checkpoint import ModelParameters
from build_engine.cpu.gguf.gguf_model import GgufModel
from build_engine.cpu.rope import Rope, base_frequencies, scale_like_yarn, yarn_attention_factor
from build_engine.errors import EngineRefusedError
from llm_pipeline.executors.cpu.engine.weights import Activation, ModelShape

ROPE_FACTORS = "rope_freqs.weight"  # divisors of the frequencies, f32 [head_size / 2]: llama3's scaling, precomputed
_ROPE_BASE = 10000.0
# src/models/gemma3.cpp: every sixth layer attends to all tokens; the 27B model alone scales by width / heads.
_GEMMA3_PATTERN, _GEMMA3_27B_LAYERS, _GEMMA3_LOCAL_ROPE_BASE = 6, 62, 10000.0


def read_parameters(model: GgufModel) -> ModelParameters:
    """Raises EngineRefusedError if a required key is missing or a value is impossible."""
    arch = model.architecture
    width, heads = model.number(f"{arch}.embedding_length"), model.number(f"{arch}.attention.head_count")
    head_size = int(model.value(f"{arch}.attention.key_length") or width // heads)
    layers = model.number(f"{arch}.block_count")
    has_kv_heads = model.value(f"{arch}.attention.head_count_kv") is not None
    is_gemma = arch == "gemma3"
    attention_scale = None
    if is_gemma and layers == _GEMMA3_27B_LAYERS:
        attention_scale = (width / heads) ** -0.5
    shape = ModelShape(
        layers=layers,
        heads=heads,
        kv_heads=model.number(f"{arch}.attention.head_count_kv") if has_kv_heads else heads,
        head_size=head_size,
        norm_epsilon=float(model.value(f"{arch}.attention.layer_norm_rms_epsilon") or 1e-5),
        rope_base=float(model.value(f"{arch}.rope.freq_base") or _ROPE_BASE),
        windows=_windows(model, layers),
        embedding_scale=math.sqrt(width) if is_gemma else 1.0,
        attention_scale=attention_scale,
        activation=Activation.GELU_TANH if is_gemma else Activation.SILU,
    )
    return ModelParameters(
        shape=shape,
        width=width,
        inner=model.number(f"{arch}.feed_forward_length"),
        rope=_rope(model, shape),
        local_rope=_local_rope(model, shape) if is_gemma and any(shape.windows) else None,
    )


def _windows(model: GgufModel, layers: int) -> tuple[int, ...]:
    arch = model.architecture
    window = int(model.value(f"{arch}.attention.sliding_window") or 0)
    if not window:
        return ()
    if arch == "llama":  # Mistral 7B 0.1
        return (window,) * layers
    pattern = model.value(f"{arch}.attention.sliding_window_pattern")
    if isinstance(pattern, list):
        if len(pattern) != layers:
            raise EngineRefusedError(
                f"{model.path.name}: {arch}.attention.sliding_window_pattern has {len(pattern)} entries for {layers} "
                "layers. Convert the model again."
            )
        return tuple(window if is_local else 0 for is_local in pattern)
    period = int(pattern or _GEMMA3_PATTERN)
    return tuple(0 if (number + 1) % period == 0 else window for number in range(layers))


def _rope(model: GgufModel, shape: ModelShape) -> Rope:
    arch = model.architecture
    frequencies = base_frequencies(shape.rope_base, shape.head_size)
    if any(tensor.name == ROPE_FACTORS for tensor in model.tensors):
        factors = model.dequantized(ROPE_FACTORS).astype(np.float64)
        if factors.shape != frequencies.shape or not (factors > 0).all():
            raise EngineRefusedError(
                f"{model.path.name}: {ROPE_FACTORS} is not {len(frequencies)} positive factors. Download it again."
            )
        frequencies = frequencies / factors

    def setting(key: str, default: Any) -> float:
        value = model.value(f"{arch}.rope.scaling.{key}")
        return float(default if value is None else value)

    kind = model.value(f"{arch}.rope.scaling.type")
    factor = setting("factor", model.value(f"{arch}.rope.scale_linear") or 1)
    if not (math.isfinite(factor) and factor > 0):
        raise EngineRefusedError(f"{model.path.name}: the rope scaling factor is {factor}. Convert the model again.")
    scale = setting("attn_factor", 1)
    if kind == "yarn":
        scaled = scale_like_yarn(
            frequencies,
            base=shape.rope_base,
            factor=factor,
            original_length=setting("original_context_length", model.context_length),
            beta_fast=setting("yarn_beta_fast", 32),
            beta_slow=setting("yarn_beta_slow", 1),
        )
        return Rope(shape.rope_base, scaled, scale * yarn_attention_factor(factor))
    # Like llama.cpp: a factor without a type is linear.
    return Rope(shape.rope_base, frequencies if kind == "none" else frequencies / factor, scale)


def _local_rope(model: GgufModel, shape: ModelShape) -> Rope:
    """The rope of gemma3's layers with a window, which is never scaled."""
    base = float(model.value(f"{model.architecture}.rope.freq_base_swa") or _GEMMA3_LOCAL_ROPE_BASE)
    return Rope(base, base_frequencies(base, shape.head_size))
