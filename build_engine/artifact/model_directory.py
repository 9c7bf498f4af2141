"""Reads a Hugging Face model directory as far as engines for all targets need it: JSON files, a hash, token ids."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from build_engine.artifact.file_kinds import describe_failed_download
from build_engine.artifact.hashing import hash_files
from build_engine.artifact.tokenizer_checks import added_token_ids
from build_engine.errors import EngineRefusedError
from build_engine.progress import Advance
from llm_pipeline.engine_files.manifest import TOKENIZER_NAME, EngineFile, TokenIds

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


def model_size_bytes(model_dir: Path) -> int:
    """Of `model_files`."""
    return sum(path.stat().st_size for path in model_files(model_dir))


def hash_model_files(model_dir: Path, advance: Advance = lambda amount: None) -> str:
    """The sha256, in hex, over names and hashes of `model_files`. Reads every byte; `advance` receives their number."""
    return digest_of(hash_files({path.name: path for path in model_files(model_dir)}, advance))


def digest_of(files: Mapping[str, EngineFile]) -> str:
    """One sha256, in hex, over the names and hashes of several files."""
    digest = hashlib.sha256()
    for name, file in sorted(files.items()):
        digest.update(f"{name} {file.sha256}\n".encode())
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
