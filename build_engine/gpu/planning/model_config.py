"""Reads the shape of a model from its config.json. The weights are never opened."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from build_engine.artifact.model_directory import CONFIG_NAME, read_json_object
from build_engine.errors import EngineRefusedError
from build_engine.model_names import checked_model_name, slug
from build_engine.targets.precisions import DTYPE_BYTES, FLOAT32

# Decoders with rotary positions and a gated MLP, whose matrices `parameters` counts. All are in TensorRT-LLM's
# MODEL_MAP (tensorrt_llm/models/__init__.py).
ARCHITECTURES = (
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "MixtralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
)
# Rotary scalings whose max_position_embeddings includes the factor: _init_max_seq_len in tensorrt_llm/builder.py.
# All others are multiplied by it.
_ALREADY_SCALED = ("su", "longrope", "llama3")
_IGNORED_KEYS = ("_name_or_path", "transformers_version")  # differ between copies of one model


@dataclass(frozen=True)
class ModelConfig:
    name: str  # of the engine's directory
    architecture: str
    dtype: str  # of the weights on disk, as TensorRT-LLM spells it
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    max_seq_len: int
    experts: int  # 1: a dense MLP
    tied_embeddings: bool
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    quantized_with: str | None  # the method, for weights that are quantized on disk
    sliding_window: int | None
    sha256: str  # of config.json without the keys that differ between copies


def read_model_config(path: Path, name: str | None = None) -> ModelConfig:
    """Raises EngineRefusedError if config.json is missing or lacks a key that a plan needs."""
    values = _read_json(path)
    return parse_model_config(values, checked_model_name(name or slug(path.resolve().name)))


def parse_model_config(values: dict[str, Any], name: str) -> ModelConfig:
    """Like `read_model_config`, from a config.json that is parsed already."""
    fields = _Fields(values)
    architecture = fields.architecture()
    heads = fields.positive("num_attention_heads")
    hidden_size = fields.positive("hidden_size")
    biased = bool(values.get("attention_bias", False))
    return ModelConfig(
        name=name,
        architecture=architecture,
        dtype=fields.dtype(),
        hidden_size=hidden_size,
        intermediate_size=fields.positive("intermediate_size"),
        layers=fields.positive("num_hidden_layers"),
        heads=heads,
        kv_heads=fields.positive("num_key_value_heads", heads),
        head_dim=fields.positive("head_dim", max(1, hidden_size // heads)),
        vocab_size=fields.positive("vocab_size"),
        max_seq_len=fields.max_seq_len(),
        experts=fields.positive("num_local_experts", 1),
        tied_embeddings=bool(values.get("tie_word_embeddings", False)),
        qkv_bias=biased or architecture == "Qwen2ForCausalLM",  # Qwen2 has no setting for it
        output_bias=biased,
        mlp_bias=bool(values.get("mlp_bias", False)),
        qk_norm=architecture == "Qwen3ForCausalLM",
        quantized_with=fields.quantized_with(),
        sliding_window=fields.sliding_window(),
        sha256=_digest(values),
    )


class _Fields:
    """Checked access to config.json. Every error message names the key and its value."""

    def __init__(self, values: dict[str, Any]) -> None:
        self._values = values

    def positive(self, key: str, default: int | None = None) -> int:
        value = self._values.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise EngineRefusedError(
                f"{CONFIG_NAME} has {key} = {value!r}; it must be an integer above 0. Use the model's original file."
            )
        return value

    def architecture(self) -> str:
        names = self._values.get("architectures")
        if not isinstance(names, list) or not names or not isinstance(names[0], str):
            raise EngineRefusedError(
                f"{CONFIG_NAME} has architectures = {names!r}; it must be a list. Use the model's original file."
            )
        return names[0]

    def dtype(self) -> str:
        value = self._values.get("torch_dtype") or self._values.get("dtype") or FLOAT32
        name = str(value).removeprefix("torch.")
        if name not in DTYPE_BYTES:
            raise EngineRefusedError(
                f"{CONFIG_NAME} has torch_dtype = {value!r}. Use weights in {', '.join(DTYPE_BYTES)}."
            )
        return name

    def max_seq_len(self) -> int:
        """`max_position_embeddings`, multiplied by the rotary factor where upstream's build() does the same.

        With a scaling that has `original_max_position_embeddings` (yarn), the former may or may not be scaled already.
        """
        positions = self.positive("max_position_embeddings")
        scaling: dict[str, Any] = self._values.get("rope_scaling") or {}
        if scaling.get("rope_type", scaling.get("type")) in _ALREADY_SCALED:
            return positions
        original: int = scaling.get("original_max_position_embeddings", positions)
        factor = float(scaling.get("factor", 1))
        return max(positions, math.ceil(original * factor))

    def quantized_with(self) -> str | None:
        settings = self._values.get("quantization_config")
        return None if settings is None else str(settings.get("quant_method", "an unnamed method"))

    def sliding_window(self) -> int | None:
        window = self._values.get("sliding_window")
        return window if self._values.get("use_sliding_window", True) and isinstance(window, int) else None


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_dir():
        raise EngineRefusedError(f"No model directory {path}. GPU engines are built from a Hugging Face directory.")
    try:
        return read_json_object(path / CONFIG_NAME)
    except FileNotFoundError:
        raise EngineRefusedError(f"{path} has no {CONFIG_NAME}. Use a Hugging Face model directory.") from None


def _digest(values: dict[str, Any]) -> str:
    content = {key: value for key, value in values.items() if key not in _IGNORED_KEYS}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
