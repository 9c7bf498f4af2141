"""Reads a Hugging Face model directory as far as engines for all targets need it: JSON files, a hash, token ids."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from build_engine.artifact.file_kinds import describe_failed_download
from build_engine.artifact.tokenizer_checks import added_token_ids
from build_engine.errors import EngineRefusedError
from llm_pipeline.engine_files.manifest import TOKENIZER_NAME, TokenIds, sha256_of

CONFIG_NAME = "config.json"
GENERATION_CONFIG_NAME = "generation_config.json"
_MODEL_FILES = ("*.safetensors", "*.bin", CONFIG_NAME, TOKENIZER_NAME)


def read_json_object(path: Path) -> dict[str, Any]:
    """Raises EngineRefusedError if the file is not a JSON object, FileNotFoundError if there is none."""
    try:
        values = json.loads(path.read_bytes())
    except ValueError as error:
        if kind := describe_failed_download(path):
            raise EngineRefusedError(f"{path} {kind}") from error
        raise EngineRefusedError(f"{path} is not valid JSON: {error}. Download it again.") from error
    if not isinstance(values, dict):
        raise EngineRefusedError(f"{path} is not a JSON object. Download it again.")
    return values


def model_files(model_dir: Path) -> list[Path]:
    """Weights, configuration and tokenizer, by name."""
    return sorted({path for pattern in _MODEL_FILES for path in model_dir.glob(pattern)})


def hash_model_files(model_dir: Path) -> str:
    """The sha256, in hex, over names and hashes of `model_files`. Reads every byte."""
    digest = hashlib.sha256()
    for path in model_files(model_dir):
        digest.update(f"{path.name} {sha256_of(path)}\n".encode())
    return digest.hexdigest()


def read_token_ids(model_dir: Path) -> TokenIds:
    """From config.json, overridden by generation_config.json, which lists every end-of-turn token."""
    values: dict[str, Any] = {}
    for name in (CONFIG_NAME, GENERATION_CONFIG_NAME):
        path = model_dir / name
        values |= read_json_object(path) if path.is_file() else {}
    eos = values.get("eos_token_id")
    bos = values.get("bos_token_id")
    eos_ids = eos if isinstance(eos, list) else [eos]
    added = added_token_ids(model_dir / TOKENIZER_NAME)
    return TokenIds(bos=bos, eos=[token for token in eos_ids if token is not None], add_bos=bos in added)
