"""Rejects GGUF models that the CPU engine's graph (llm_pipeline/executors/cpu/engine/graph.py) would compute wrongly.

The graph supports the tensors and settings below. It would ignore any other and generate nonsense.
"""

from __future__ import annotations

import re

from build_engine.cpu.architectures import find_by_gguf_name, missing_parts
from build_engine.cpu.gguf.gguf_model import GgufModel
from build_engine.cpu.gguf.parameters import ROPE_FACTORS
from build_engine.errors import EngineRefusedError

_PARTS = {"token_embd": "embedding", "output_norm": "norm", "output": "vocabulary"}
_LAYER_PARTS = {
    "attn_norm": "attention_norm",
    "ffn_norm": "mlp_norm",
    "post_attention_norm": "attention_post_norm",
    "post_ffw_norm": "mlp_post_norm",
    "attn_q_norm": "query_norm",
    "attn_k_norm": "key_norm",
    "attn_q": "query",
    "attn_k": "key",
    "attn_v": "value",
    "attn_output": "attention_output",
    "ffn_gate": "gate",
    "ffn_up": "up",
    "ffn_down": "down",
}
_LAYER_TENSOR = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")
# The values of these settings that the graph implements. `rope.scaling.type` linear is a factor and nothing else.
_ALLOWED_VALUES = {
    "rope.scaling.type": ("none", "linear", "yarn"),
    "expert_count": (0,),
    "attn_logit_softcapping": (0,),
    "final_logit_softcapping": (0,),
    "rope.scaling.yarn_ext_factor": (1,),
    "rope.scaling.yarn_attn_factor": (1,),
    "rope.scaling.yarn_log_multiplier": (0,),
}
_WITH_WINDOWS = ("llama", "gemma3")  # llama.cpp's converter writes no window for the others


def part_name(tensor: str) -> str:
    """The part that a tensor is, as architectures.py names it; the tensor's own name if there is no such part."""
    stem, _, kind = tensor.rpartition(".")
    if stem in _PARTS and kind == "weight":
        return f"{_PARTS[stem]}.weight"
    if (match := _LAYER_TENSOR.fullmatch(tensor)) and match[2] in _LAYER_PARTS:
        return f"layers.{match[1]}.{_LAYER_PARTS[match[2]]}.{match[3]}"
    return tensor


def require_supported(model: GgufModel) -> None:
    """Raises EngineRefusedError with the reason if the CPU engine does not support the model."""
    try:
        problem = _container_problem(model) or _tensor_problem(model) or _setting_problem(model)
    except EngineRefusedError as error:
        raise EngineRefusedError(f"{model.path.name}: {error}") from error
    if problem:
        raise EngineRefusedError(f"{model.path.name}: {problem}")


def _container_problem(model: GgufModel) -> str | None:
    if not model.is_little_endian:
        return "big-endian GGUF files are not supported. Convert it with gguf-convert-endian."
    if (model.value("split.count") or 1) > 1:
        return "the model is split into several files. Merge them with llama.cpp's `llama-gguf-split --merge`."
    if types := model.undecodable_types():
        return f"tensors of type {', '.join(types)} can't be dequantized. Use a file with another quantization."
    return None


def _tensor_problem(model: GgufModel) -> str | None:
    architecture = find_by_gguf_name(model.architecture)
    layers = model.number(f"{model.architecture}.block_count")
    tensors = {part_name(tensor.name): tensor.name for tensor in model.tensors if tensor.name != ROPE_FACTORS}
    known = {"embedding.weight", "norm.weight", "vocabulary.weight"}
    known |= {f"layers.{number}.{part}" for number in range(layers) for part in architecture.layer_parts()}
    if unknown := sorted(name for part, name in tensors.items() if part not in known):
        return f"the CPU engine does not support tensor {unknown[0]} ({len(unknown)} unsupported). Use another model."
    if missing := missing_parts(architecture, layers, tensors):
        return f"it has no tensor {_tensor_name(missing[0])} ({len(missing)} missing). Download it again."
    return None


def _tensor_name(part: str) -> str:
    """The inverse of `part_name`."""
    stem, _, kind = part.rpartition(".")
    for name, origin in _PARTS.items():
        if origin == stem:
            return f"{name}.{kind}"
    layer, _, origin = stem.rpartition(".")
    names = {origin: name for name, origin in _LAYER_PARTS.items()}
    return f"blk.{layer.removeprefix('layers.')}.{names[origin]}.{kind}"


def _setting_problem(model: GgufModel) -> str | None:
    arch = model.architecture
    for key, allowed in _ALLOWED_VALUES.items():
        if (value := model.value(f"{arch}.{key}")) is not None and value not in allowed:
            return f"{arch}.{key} is {value!r}, which the CPU engine does not support. Use another model."
    if arch not in _WITH_WINDOWS and (window := model.value(f"{arch}.attention.sliding_window")):
        return f"{arch}.attention.sliding_window is {window}, which the CPU engine supports for llama and gemma3 only."
    head = model.value(f"{arch}.attention.key_length")
    if head is None:
        head = model.number(f"{arch}.embedding_length") // model.number(f"{arch}.attention.head_count")
    for key in ("rope.dimension_count", "attention.value_length"):
        if (value := model.value(f"{arch}.{key}")) not in (None, head):
            return f"{arch}.{key} is {value}; the CPU engine supports only the head size, {head}. Use another model."
    return None
