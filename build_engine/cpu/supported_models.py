"""Rejects models that the CPU engine's graph (llm_pipeline/executors/cpu/engine/graph.py) would compute incorrectly.

The graph supports the tensors and settings below. It would ignore any other and generate nonsense.
"""

from __future__ import annotations

import re

from build_engine.cpu.gguf_model import GgufModel
from build_engine.errors import EngineRefusedError

ARCHITECTURES = ("llama", "qwen2", "qwen3")
_TENSOR = re.compile(
    r"token_embd\.weight|output_norm\.weight|output\.weight|"
    r"blk\.\d+\.(attn_norm|ffn_norm|attn_q_norm|attn_k_norm)\.weight|"
    r"blk\.\d+\.(attn_q|attn_k|attn_v|attn_output|ffn_gate|ffn_up|ffn_down)\.(weight|bias)"
)
# The only values of these settings that the graph implements.
_REQUIRED_VALUES = {"rope.scaling.type": "none", "expert_count": 0, "attention.sliding_window": 0}


def require_supported(model: GgufModel) -> None:
    """Raises EngineRefusedError with the reason if the CPU engine does not support the model."""
    problem = _container_problem(model) or _architecture_problem(model) or _graph_problem(model)
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


def _architecture_problem(model: GgufModel) -> str | None:
    if model.architecture in ARCHITECTURES:
        return None
    return (
        f"architecture {model.architecture!r} is not supported on CPUs. "
        f"Use a model of {', '.join(ARCHITECTURES)} (llama includes SmolLM, Mistral and TinyLlama)."
    )


def _graph_problem(model: GgufModel) -> str | None:
    names = {tensor.name for tensor in model.tensors}
    if missing := {"token_embd.weight", "output_norm.weight"} - names:
        return f"tensors {', '.join(sorted(missing))} are missing. Download it again."
    if unknown := sorted(name for name in names if not _TENSOR.fullmatch(name)):
        return f"the CPU engine does not support tensor {unknown[0]} ({len(unknown)} unsupported). Use another model."
    return _setting_problem(model)


def _setting_problem(model: GgufModel) -> str | None:
    arch = model.architecture
    for key, required in _REQUIRED_VALUES.items():
        if (value := model.value(f"{arch}.{key}")) not in (None, required):
            return f"{arch}.{key} is {value!r}, which the CPU engine does not support. Use another model."
    head = model.value(f"{arch}.attention.key_length")
    if head is None:
        head = model.number(f"{arch}.embedding_length") // model.number(f"{arch}.attention.head_count")
    for key in ("rope.dimension_count", "attention.value_length"):
        if (value := model.value(f"{arch}.{key}")) not in (None, head):
            return f"{arch}.{key} is {value}; the CPU engine supports only the head size, {head}. Use another model."
    return None
