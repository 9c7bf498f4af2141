"""Model directories for TensorRT-LLM's PyTorch runtime: complete, except that the weights are a few bytes only."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from llm_pipeline.engine_files.manifest import (
    TOKENIZER_NAME,
    EngineFile,
    EngineLimits,
    EngineManifest,
    PyTorchModel,
    SourceModel,
    TokenIds,
    sha256_of,
)

VERSION = "1.2.1"


def make_model_directory(
    folder: Path,
    *,
    tokenizer: Path | None = None,
    model_name: str = "tiny",
    version: str = VERSION,
    sm: int = 90,
    tp: int = 1,
    pp: int = 1,
    ep: int = 1,
    vocab_size: int = 1000,
    max_seq_len: int = 64,
    max_batch_size: int = 4,
    max_num_tokens: int = 8192,
    end_ids: tuple[int, ...] = (2,),
    **changes: Any,
) -> EngineManifest:
    """Writes the directory and returns its manifest. `changes` are fields of PyTorchModel."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "bfloat16",
        "vocab_size": vocab_size,
        "max_position_embeddings": max_seq_len,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "eos_token_id": list(end_ids),
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": list(end_ids)}))
    (folder / "model.safetensors").write_bytes(b"no weights")
    if tokenizer:
        shutil.copy(tokenizer, folder / TOKENIZER_NAME)
    fields: dict[str, Any] = {
        "architecture": "LlamaForCausalLM",
        "tensorrt_llm": version,
        "sm": sm,
        "tp": tp,
        "pp": pp,
        "ep": ep,
        "max_batch_size": max_batch_size,
        "max_num_tokens": max_num_tokens,
        "is_linked": False,
        **changes,
    }
    manifest = EngineManifest(
        target="h100-80gb",
        precision="bf16",
        model_name=model_name,
        source=SourceModel(
            name=model_name, sha256="0" * 64, size_bytes=1, architecture="llama", quantization="bfloat16"
        ),
        tools={},
        limits=EngineLimits(context_length=max_seq_len, vocab_size=vocab_size),
        tokens=TokenIds(bos=1, eos=list(end_ids)),
        created="2026-01-01T00:00:00+00:00",
        files={
            path.name: EngineFile(sha256=sha256_of(path), size_bytes=path.stat().st_size)
            for path in sorted(folder.iterdir())
            if path.name != "manifest.json"
        },
        pytorch=PyTorchModel(**fields),
    )
    manifest.save(folder)
    return manifest
