"""Which models the CPU engine's graph (llm_pipeline/executors/cpu/engine/graph.py) computes correctly.

It takes the tensors and settings below. A model with any other would talk nonsense, so it is refused here.
"""

from __future__ import annotations

import re

from build_engine.cpu.gguf_model import GgufSource
from build_engine.errors import EngineRefusedError

ARCHITECTURES = ("llama", "qwen2", "qwen3")
_TENSOR = re.compile(
    r"token_embd\.weight|output_norm\.weight|output\.weight|"
    r"blk\.\d+\.(attn_norm|ffn_norm|attn_q_norm|attn_k_norm)\.weight|"
    r"blk\.\d+\.(attn_q|attn_k|attn_v|attn_output|ffn_gate|ffn_up|ffn_down)\.(weight|bias)"
)
# Read by the graph from files that have them; any other value of theirs has no place in it.
_SETTING_NEUTRAL = {"rope.scaling.type": "none", "expert_count": 0, "attention.sliding_window": 0}


def require_supported(source: GgufSource) -> None:
    """EngineRefusedError, with the reason, for a model that would not come out right."""
    problem = _container_problem(source) or _architecture_problem(source) or _graph_problem(source)
    if problem:
        raise EngineRefusedError(f"{source.path.name}: {problem}")


def _container_problem(source: GgufSource) -> str | None:
    if not source.is_little_endian:
        return "big-endian GGUF files can't be read. Convert it with gguf-convert-endian."
    if (source.value("split.count") or 1) > 1:
        return "the model is split over several files. Join them with llama.cpp's `llama-gguf-split --merge`."
    if types := source.undecodable_types():
        return f"tensors of type {', '.join(types)} can't be dequantised. Use a file with another quantisation."
    return None


def _architecture_problem(source: GgufSource) -> str | None:
    if source.architecture in ARCHITECTURES:
        return None
    return (
        f"architecture {source.architecture!r} can't be built for the CPU. "
        f"These can: {', '.join(ARCHITECTURES)} (llama includes SmolLM, Mistral and TinyLlama)."
    )


def _graph_problem(source: GgufSource) -> str | None:
    names = {tensor.name for tensor in source.tensors}
    if missing := {"token_embd.weight", "output_norm.weight"} - names:
        return f"tensors are missing: {', '.join(sorted(missing))}. Download it again."
    if unknown := sorted(name for name in names if not _TENSOR.fullmatch(name)):
        return f"the CPU engine has no place for tensor {unknown[0]} ({len(unknown)} such). Use another model."
    return _setting_problem(source)


def _setting_problem(source: GgufSource) -> str | None:
    arch = source.architecture
    for key, neutral in _SETTING_NEUTRAL.items():
        if (found := source.value(f"{arch}.{key}")) not in (None, neutral):
            return f"{arch}.{key} is {found!r}, which the CPU engine does not know. Use another model."
    head = source.value(f"{arch}.attention.key_length")
    if head is None:
        head = source.number(f"{arch}.embedding_length") // source.number(f"{arch}.attention.head_count")
    for key in ("rope.dimension_count", "attention.value_length"):
        if (found := source.value(f"{arch}.{key}")) not in (None, head):
            return f"{arch}.{key} is {found}, the CPU engine takes only the head size, {head}. Use another model."
    return None
