"""Reads what a Hugging Face model directory contributes to a manifest: a hash of its files, and special token ids."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from build_engine.artifact.tokenizer_checks import added_token_ids
from build_engine.gpu.planning.model_config import CONFIG_NAME, ModelConfig
from build_engine.progress import BuildProgress
from llm_pipeline.engine_files.manifest import TOKENIZER_NAME, SourceModel, TokenIds, sha256_of

_MODEL_FILES = ("*.safetensors", "*.bin", CONFIG_NAME, TOKENIZER_NAME)


def hash_model(model_dir: Path, model: ModelConfig, progress: BuildProgress) -> SourceModel:
    """Reads every byte of the model. The sha256 is over names and hashes of weights, configuration and tokenizer."""
    with progress.step(f"hash {model_dir.name}"):
        paths = sorted({path for pattern in _MODEL_FILES for path in model_dir.glob(pattern)})
        digest = hashlib.sha256()
        for path in paths:
            digest.update(f"{path.name} {sha256_of(path)}\n".encode())
    return SourceModel(
        name=model.name,
        sha256=digest.hexdigest(),
        size_bytes=sum(path.stat().st_size for path in paths),
        architecture=model.architecture,
        quantization=model.dtype,
    )


def read_token_ids(model_dir: Path) -> TokenIds:
    """From config.json, overridden by generation_config.json, which lists every end-of-turn token."""
    values: dict[str, Any] = {}
    for name in (CONFIG_NAME, "generation_config.json"):
        path = model_dir / name
        values |= json.loads(path.read_bytes()) if path.is_file() else {}
    eos = values.get("eos_token_id")
    bos = values.get("bos_token_id")
    eos_ids = eos if isinstance(eos, list) else [eos]
    added = added_token_ids(model_dir / TOKENIZER_NAME)
    return TokenIds(bos=bos, eos=[token for token in eos_ids if token is not None], add_bos=bos in added)
