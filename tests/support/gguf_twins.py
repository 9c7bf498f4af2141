"""Writes a tiny Hugging Face model as a GGUF file, as llama.cpp's convert_hf_to_gguf.py does it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from tests.support.hugging_face_models import CONTEXT_LENGTH, VOCAB_SIZE, Floats, TinyDirectory
from tests.support.tiny_models import MERGES, TOKENS, TYPES

_NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_NAMES_OF_GEMMA3 = _NAMES | {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
_ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "Gemma3ForCausalLM": "gemma3",
}


def write_gguf_twin(path: Path, model: TinyDirectory, metadata: dict[str, Any], factors: Floats | None = None) -> Path:
    """Writes the model in float32. `metadata` are keys without the architecture, `factors` the tensor rope_freqs."""
    values = model.config_values()
    arch = _ARCHITECTURES[model.class_name]
    head = values.get("head_dim", values["hidden_size"] // values["num_attention_heads"])
    writer = gguf.GGUFWriter(path, arch)
    writer.add_context_length(CONTEXT_LENGTH)
    writer.add_embedding_length(values["hidden_size"])
    writer.add_block_count(values["num_hidden_layers"])
    writer.add_feed_forward_length(values["intermediate_size"])
    writer.add_head_count(values["num_attention_heads"])
    writer.add_head_count_kv(values["num_key_value_heads"])
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_layer_norm_rms_eps(values["rms_norm_eps"])
    writer.add_rope_freq_base(values.get("rope_theta", 10000.0))
    for key, value in metadata.items():
        add = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32, list: writer.add_array}
        add[type(value)](f"{arch}.{key}", value)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([*TOKENS, *(f"[PAD{number}]" for number in range(len(TOKENS), VOCAB_SIZE))])
    writer.add_token_types([*TYPES, *[gguf.TokenType.UNUSED] * (VOCAB_SIZE - len(TOKENS))])
    writer.add_token_merges(MERGES)
    for name, tensor in model.tensors().items():
        writer.add_tensor(_tensor_name(name, arch), _tensor_values(name, tensor, arch, head))
    if factors is not None:
        writer.add_tensor("rope_freqs.weight", factors)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _tensor_name(name: str, arch: str) -> str:
    whole = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    stem, _, kind = name.rpartition(".")
    if stem in whole:
        return f"{whole[stem]}.{kind}"
    number, part = stem.removeprefix("model.layers.").split(".", 1)
    names = _NAMES_OF_GEMMA3 if arch == "gemma3" else _NAMES
    return f"blk.{number}.{names[part]}.{kind}"


def _tensor_values(name: str, tensor: Floats, arch: str, head: int) -> npt.NDArray[np.float32]:
    if arch == "gemma3" and name.endswith("norm.weight"):
        return tensor + np.float32(1)
    if arch == "llama" and ("q_proj" in name or "k_proj" in name):  # for rotary embeddings of adjacent pairs
        rows = tensor.reshape(len(tensor) // head, 2, head // 2, -1).swapaxes(1, 2)
        return np.ascontiguousarray(rows.reshape(tensor.shape))
    return tensor
