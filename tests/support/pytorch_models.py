"""Model directories for TensorRT-LLM's PyTorch runtime, without weights, and their manifests."""

from __future__ import annotations

from typing import Any

from llm_pipeline.engine_files.manifest import EngineManifest, PyTorchModel
from tests.support.sample_requests import make_manifest


def make_pytorch_manifest(version: str = "1.2.1", *, end_ids: tuple[int, ...] = (2,), **model: Any) -> EngineManifest:
    """Returns the manifest of a model directory without files; `model` are fields of PyTorchModel."""
    defaults: dict[str, Any] = {
        "architecture": "LlamaForCausalLM",
        "sm": 90,
        "tp": 1,
        "pp": 1,
        "max_batch_size": 3,
        "max_num_tokens": 8192,
        "is_linked": False,
    }
    manifest = make_manifest(context_length=10**7, vocab_size=1000, end_ids=end_ids)
    pytorch = PyTorchModel(tensorrt_llm=version, **{**defaults, **model})
    return manifest.model_copy(update={"target": "h100", "precision": "bf16", "pytorch": pytorch})
