"""Writes tiny GGUF models with random weights, and runs them in numpy as an independent reference."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import gguf
import numpy as np
import numpy.typing as npt
from tokenizers.pre_tokenizers import ByteLevel

Array: TypeAlias = "npt.NDArray[Any]"
SPECIAL = ["<|endoftext|>", "<|start|>", "<|end|>"]
MERGES = ["h e", "l l", "he ll", "hell o", "Ġ w", "o r"]
TOKENS = [*SPECIAL, *sorted(ByteLevel.alphabet()), *(merge.replace(" ", "") for merge in MERGES)]
TYPES = [3] * len(SPECIAL) + [1] * (len(TOKENS) - len(SPECIAL))


@dataclass(frozen=True)
class TinyModel:
    """A two-layer model, large enough for every part of the graph (grouped heads, both norms) and no larger."""

    arch: str = "llama"
    pre: str = "smollm"
    width: int = 64
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    ffn: int = 96
    rope_base: float = 10000.0
    epsilon: float = 1e-5
    seed: int = 7
    tied: bool = True
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def head(self) -> int:
        return self.width // self.heads

    def weights(self) -> dict[str, Array]:
        rng = np.random.default_rng(self.seed)

        def matrix(rows: int, columns: int) -> Array:
            return rng.normal(0, 0.3, (rows, columns)).astype(np.float32)

        def norm(size: int) -> Array:
            return rng.uniform(0.5, 1.5, size).astype(np.float32)

        tensors = {"token_embd.weight": matrix(len(TOKENS), self.width), "output_norm.weight": norm(self.width)}
        if not self.tied:
            tensors["output.weight"] = matrix(len(TOKENS), self.width)
        kv = self.kv_heads * self.head
        for index in range(self.layers):
            shapes = {"attn_q": (self.width, self.width), "attn_k": (kv, self.width), "attn_v": (kv, self.width)}
            shapes |= {"attn_output": (self.width, self.width), "ffn_gate": (self.ffn, self.width)}
            shapes |= {"ffn_up": (self.ffn, self.width), "ffn_down": (self.width, self.ffn)}
            layer = {f"{name}.weight": matrix(*shape) for name, shape in shapes.items()}
            layer |= {"attn_norm.weight": norm(self.width), "ffn_norm.weight": norm(self.width)}
            if self.arch == "qwen2":
                layer |= {f"{name}.bias": norm(shapes[name][0]) for name in ("attn_q", "attn_k", "attn_v")}
            if self.arch == "qwen3":
                layer |= {f"{name}.weight": norm(self.head) for name in ("attn_q_norm", "attn_k_norm")}
            tensors |= {f"blk.{index}.{name}": value for name, value in layer.items()}
        return tensors


def write_gguf(
    path: Path, model: TinyModel, quantization: str = "F32", weights: dict[str, Array] | None = None
) -> dict[str, Array]:
    """Writes the model with its matrices in that type and returns the dequantized weights.

    `weights` None: the random ones of the model.
    """
    kind = gguf.GGMLQuantizationType[quantization]
    writer = gguf.GGUFWriter(path, model.arch)
    writer.add_name("Tiny Test Model")
    writer.add_context_length(128)
    writer.add_embedding_length(model.width)
    writer.add_block_count(model.layers)
    writer.add_feed_forward_length(model.ffn)
    writer.add_head_count(model.heads)
    writer.add_head_count_kv(model.kv_heads)
    writer.add_layer_norm_rms_eps(model.epsilon)
    writer.add_rope_freq_base(model.rope_base)
    writer.add_file_type(gguf.LlamaFileType["ALL_F32" if quantization == "F32" else f"MOSTLY_{quantization}"])
    _add_tokenizer(writer, model)
    for key, value in model.extra.items():
        (writer.add_string if isinstance(value, str) else writer.add_uint32)(f"{model.arch}.{key}", value)
    effective: dict[str, Array] = {}
    for name, value in (model.weights() if weights is None else weights).items():
        if value.ndim == 1:
            writer.add_tensor(name, value)
            effective[name] = value
            continue
        packed = gguf.quantize(value, kind)
        writer.add_tensor(name, packed, raw_dtype=kind)
        effective[name] = gguf.dequantize(packed, kind).astype(np.float16).astype(np.float32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return effective


def _add_tokenizer(writer: gguf.GGUFWriter, model: TinyModel) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(model.pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types(TYPES)
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)


def numpy_greedy(model: TinyModel, weights: dict[str, Array], prompt: list[int], count: int) -> list[int]:
    """Greedy token ids, computed in float32 without a cache: the whole sequence for each token."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(_logits(model, weights, ids).argmax()))
    return ids[len(prompt) :]


def _logits(model: TinyModel, weights: dict[str, Array], ids: list[int]) -> Array:
    hidden = weights["token_embd.weight"][ids]
    for index in range(model.layers):
        layer = {name.split(".", 2)[2]: w for name, w in weights.items() if name.startswith(f"blk.{index}.")}
        hidden = hidden + _attention(model, layer, _norm(hidden, layer["attn_norm.weight"], model.epsilon))
        inner = _norm(hidden, layer["ffn_norm.weight"], model.epsilon)
        gate = inner @ layer["ffn_gate.weight"].T
        hidden = hidden + (gate / (1 + np.exp(-gate)) * (inner @ layer["ffn_up.weight"].T)) @ layer["ffn_down.weight"].T
    last = _norm(hidden[-1:], weights["output_norm.weight"], model.epsilon)
    return (last @ weights.get("output.weight", weights["token_embd.weight"]).T)[0]


def _attention(model: TinyModel, layer: dict[str, Array], hidden: Array) -> Array:
    length = len(hidden)

    def project(name: str, heads: int) -> Array:
        flat = hidden @ layer[f"{name}.weight"].T + layer.get(f"{name}.bias", 0)
        return flat.reshape(length, heads, model.head).transpose(1, 0, 2)

    query, key = project("attn_q", model.heads), project("attn_k", model.kv_heads)
    value = project("attn_v", model.kv_heads)
    if "attn_q_norm.weight" in layer:
        query = _norm(query, layer["attn_q_norm.weight"], model.epsilon)
        key = _norm(key, layer["attn_k_norm.weight"], model.epsilon)
    query, key = _rope(model, query), _rope(model, key)
    repeat = model.heads // model.kv_heads
    key, value = key.repeat(repeat, axis=0), value.repeat(repeat, axis=0)
    scores = query @ key.transpose(0, 2, 1) / np.sqrt(model.head)
    scores = np.where(np.tril(np.ones((length, length), bool)), scores, -np.inf)
    probabilities = np.exp(scores - scores.max(-1, keepdims=True))
    probabilities /= probabilities.sum(-1, keepdims=True)
    return (probabilities @ value).transpose(1, 0, 2).reshape(length, -1) @ layer["attn_output.weight"].T


def _rope(model: TinyModel, heads: Array) -> Array:
    """GGUF stores llama weights for rotary embeddings of adjacent pairs, other architectures' for halves."""
    half = model.head // 2
    angles = np.outer(np.arange(heads.shape[1]), model.rope_base ** (-np.arange(half) / half))
    cos, sin = np.cos(angles), np.sin(angles)
    rotated = np.empty_like(heads)
    first, second = (
        (np.s_[..., ::2], np.s_[..., 1::2]) if model.arch == "llama" else (np.s_[..., :half], np.s_[..., half:])
    )
    rotated[first] = heads[first] * cos - heads[second] * sin
    rotated[second] = heads[second] * cos + heads[first] * sin
    return rotated


def _norm(values: Array, weight: Array, epsilon: float) -> Array:
    return values / np.sqrt((values**2).mean(-1, keepdims=True) + epsilon) * weight
