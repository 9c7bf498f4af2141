"""Manifests of model directories for TensorRT-LLM's PyTorch runtime, and LoRA adapters, both without weights."""

from __future__ import annotations

import json
from pathlib import Path
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


def make_adapter(folder: Path, **changes: Any) -> Path:
    """Writes a LoRA adapter of PEFT's, and returns its folder; `changes` are keys of its config, None removes one."""
    folder.mkdir(parents=True)
    config = {"peft_type": "LORA", "r": 8, "target_modules": ["q_proj", "v_proj"], **changes}
    present = {name: value for name, value in config.items() if value is not None}
    (folder / "adapter_config.json").write_text(json.dumps(present))
    (folder / "adapter_model.safetensors").write_bytes(b"no weights")
    return folder
