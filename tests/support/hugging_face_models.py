"""Writes tiny Hugging Face model directories with random weights: one of each architecture and kind of rope.

The same numbers on every machine, so that logits which transformers computed once are a reference everywhere. Weights
are exact in float16, as an engine stores them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from tests.support.tiny_models import MERGES, SPECIAL, TOKENS

Floats = npt.NDArray[np.float32]
VOCAB_SIZE, CONTEXT_LENGTH = 320, 128
_BASE_CONFIG: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT_LENGTH,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
_MODEL_TYPES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "Gemma3ForCausalLM": "gemma3_text",
}
_GEMMA3: dict[str, Any] = {
    "num_hidden_layers": 4,
    "head_dim": 32,
    "query_pre_attn_scalar": 20,
    "sliding_window": 16,
    "hidden_activation": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
}


@dataclass(frozen=True)
class TinyDirectory:
    """A model directory. `config` has further keys of config.json, or other values of the basic ones."""

    class_name: str = "LlamaForCausalLM"
    config: Mapping[str, Any] = field(default_factory=dict)
    type_name: str = "F32"  # of the stored weights: F32, F16 or BF16
    shards: int = 1
    seed: int = 11

    def config_values(self) -> dict[str, Any]:
        values = _BASE_CONFIG | dict(self.config)
        values |= {"architectures": [self.class_name], "model_type": _MODEL_TYPES.get(self.class_name, "unknown")}
        return values

    def tensors(self) -> dict[str, Floats]:
        values = self.config_values()
        random = np.random.RandomState(self.seed)  # the one generator whose numbers numpy never changes
        width, inner = values["hidden_size"], values["intermediate_size"]
        head = values.get("head_dim", width // values["num_attention_heads"])
        heads, kv_heads = values["num_attention_heads"] * head, values["num_key_value_heads"] * head
        is_gemma = self.class_name == "Gemma3ForCausalLM"
        is_biased = {
            "attn": values.get("attention_bias", self.class_name == "Qwen2ForCausalLM"),
            "mlp": values.get("mlp_bias", False),
        }

        def matrix(rows: int, columns: int, deviation: float = 0.2) -> Floats:
            return _rounded(random.normal(0, deviation, (rows, columns)), self.type_name)

        def vector(size: int, low: float) -> Floats:
            return _rounded(random.uniform(low, low + 1, size), self.type_name)

        norm_low = -0.5 if is_gemma else 0.5  # Gemma adds 1
        tensors = {
            "model.embed_tokens.weight": matrix(VOCAB_SIZE, width, 0.05 if is_gemma else 0.2),
            "model.norm.weight": vector(width, norm_low),
        }
        if not values.get("tie_word_embeddings", is_gemma):
            tensors["lm_head.weight"] = matrix(VOCAB_SIZE, width)
        norms = {"input_layernorm": width, "post_attention_layernorm": width}
        if is_gemma:
            norms |= {"pre_feedforward_layernorm": width, "post_feedforward_layernorm": width}
        if is_gemma or self.class_name == "Qwen3ForCausalLM":
            norms |= {"self_attn.q_norm": head, "self_attn.k_norm": head}
        shapes = {
            "self_attn.q_proj": (heads, width),
            "self_attn.k_proj": (kv_heads, width),
            "self_attn.v_proj": (kv_heads, width),
            "self_attn.o_proj": (width, heads),
            "mlp.gate_proj": (inner, width),
            "mlp.up_proj": (inner, width),
            "mlp.down_proj": (width, inner),
        }
        for number in range(values["num_hidden_layers"]):
            layer = f"model.layers.{number}"
            for name, size in norms.items():
                # Gemma's layers would else change little: the embedding, scaled by 8, would decide the next token.
                is_post_norm = is_gemma and name.startswith("post_")
                tensors[f"{layer}.{name}.weight"] = vector(size, 3.0 if is_post_norm else norm_low)
            for name, shape in shapes.items():
                tensors[f"{layer}.{name}.weight"] = matrix(*shape)
                is_output_of_qwen2 = self.class_name == "Qwen2ForCausalLM" and name == "self_attn.o_proj"
                if is_biased[name.split(".")[0].removeprefix("self_")] and not is_output_of_qwen2:
                    tensors[f"{layer}.{name}.bias"] = vector(shape[0], -0.5)
        return tensors

    def write(self, directory: Path) -> Path:
        """Creates the directory and returns it."""
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "config.json").write_text(json.dumps(self.config_values()))
        write_tokenizer(directory / "tokenizer.json")
        tensors = self.tensors()
        if self.shards == 1:
            write_safetensors(directory / "model.safetensors", tensors, self.type_name)
            return directory
        weight_map: dict[str, str] = {}
        for number in range(self.shards):
            name = f"model-{number + 1:05}-of-{self.shards:05}.safetensors"
            part = dict(list(tensors.items())[number :: self.shards])
            write_safetensors(directory / name, part, self.type_name)
            weight_map |= dict.fromkeys(part, name)
        (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
        return directory


def _rope(**settings: object) -> dict[str, Any]:
    return {"rope_scaling": settings}


_LLAMA3_ROPE = _rope(
    rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32
)
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
# The models whose logits and tokens in tests/data/transformers_reference are from transformers.
REFERENCE_MODELS = {
    "llama": TinyDirectory(),
    "llama-tied-bf16-shards": TinyDirectory(config={"tie_word_embeddings": True}, type_name="BF16", shards=3),
    "llama-biases-f16": TinyDirectory(config={"attention_bias": True, "mlp_bias": True}, type_name="F16"),
    "llama-head-size": TinyDirectory(config={"head_dim": 32, "num_key_value_heads": 4}),
    "llama-rope-linear": TinyDirectory(config=_rope(rope_type="linear", factor=4.0)),
    "llama-rope-llama3": TinyDirectory(config=_LLAMA3_ROPE, seed=12),
    "llama-rope-yarn": TinyDirectory(config=_rope(**_YARN)),
    "llama-rope-yarn-options": TinyDirectory(
        config=_rope(**_YARN, beta_fast=8.0, beta_slow=2.0, mscale=0.7, mscale_all_dim=0.4, truncate=False)
    ),
    "llama-rope-parameters": TinyDirectory(config={"rope_parameters": {**_YARN, "rope_theta": 500.0}}),
    "mistral": TinyDirectory("MistralForCausalLM", {"sliding_window": None, "rope_theta": 1e6}),
    "mistral-window": TinyDirectory("MistralForCausalLM", {"sliding_window": 20, "head_dim": 32}),
    "qwen2": TinyDirectory("Qwen2ForCausalLM", {"rope_theta": 1e6}, type_name="BF16"),
    "qwen2-window": TinyDirectory(
        "Qwen2ForCausalLM",
        {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1, "rope_scaling": _YARN},
    ),
    "qwen3": TinyDirectory("Qwen3ForCausalLM", {"head_dim": 32, "tie_word_embeddings": True}),
    "gemma3": TinyDirectory(
        "Gemma3ForCausalLM",
        {
            **_GEMMA3,
            "sliding_window_pattern": 2,
            "rope_theta": 50000.0,
            "rope_local_base_freq": 1000.0,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        },
        type_name="BF16",
        seed=15,
    ),
    "gemma3-layer-types": TinyDirectory(
        "Gemma3ForCausalLM",
        {
            **_GEMMA3,
            "layer_types": ["sliding_attention", "full_attention", "full_attention", "sliding_attention"],
            "rope_parameters": {
                "full_attention": {**_YARN, "rope_theta": 50000.0},
                "sliding_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1000.0},
            },
        },
        seed=14,
    ),
}


def write_tokenizer(path: Path) -> None:
    """A byte-level BPE tokenizer of TOKENS."""
    ids = {token: index for index, token in enumerate(TOKENS)}
    tokenizer = Tokenizer(BPE(ids, [tuple(merge.split(" ")) for merge in MERGES]))  # type: ignore[misc]
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.save(str(path))


def write_safetensors(path: Path, tensors: Mapping[str, Floats], type_name: str = "F32") -> None:
    """Writes the values, which must be exact in that type."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    content = b""
    for name, tensor in tensors.items():
        stored = _stored(tensor, type_name)
        offsets = [len(content), len(content) + len(stored)]
        header[name] = {"dtype": type_name, "shape": list(tensor.shape), "data_offsets": offsets}
        content += stored
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content)


def _stored(tensor: Floats, type_name: str) -> bytes:
    if type_name == "BF16":
        return (tensor.view(np.uint32) >> 16).astype("<u2").tobytes()
    return tensor.astype({"F32": "<f4", "F16": "<f2"}[type_name]).tobytes()


def _rounded(values: npt.NDArray[np.float64], type_name: str) -> Floats:
    """Values that are exact in float16 and, for BF16, in bfloat16."""
    rounded = np.ascontiguousarray(values.astype(np.float16).astype(np.float32))
    if type_name == "BF16":
        rounded = ((rounded.view(np.uint32) >> 16) << 16).view(np.float32)
    return rounded
