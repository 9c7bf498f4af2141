"""The manifest of an engine for GPUs: what it was made from, and what it is bound to."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from build_engine.gpu.model_config import CONFIG_NAME, ModelConfig
from build_engine.gpu.plan import Plan
from build_engine.gpu.plan_output import plan_json
from build_engine.verify import ids_added_to_any_text
from llm_pipeline.engine_manifest import (
    TOKENIZER_NAME,
    EngineFile,
    EngineLimits,
    EngineManifest,
    SourceModel,
    TokenIds,
    sha256_of,
)

BUILD_NAME = "build.json"  # what EngineManifest has no field for: GPU, driver, parallelism, calibration, commands
_PACKAGE = "triton-completions"
_MODEL_FILES = ("*.safetensors", "*.bin", CONFIG_NAME, TOKENIZER_NAME)


@dataclass(frozen=True)
class BuildMachine:
    """An engine runs on this SM only, and with these versions only."""

    gpu_name: str
    sm: int
    driver: str
    versions: dict[str, str]  # tensorrt_llm, tensorrt


def hash_model(model_dir: Path, model: ModelConfig) -> SourceModel:
    """One hash over names and hashes of the weights, the configuration and the tokenizer."""
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


def make_manifest(
    plan: Plan, model_dir: Path, building: Path, source: SourceModel, machine: BuildMachine
) -> EngineManifest:
    """Write build.json, then hash every file of the engine."""
    build = {"machine": asdict(machine), "plan": plan_json(plan)}
    (building / BUILD_NAME).write_text(json.dumps(build, indent=2) + "\n", encoding="utf-8")
    chosen = plan.combination
    files = [path for path in sorted(building.rglob("*")) if path.is_file()]
    return EngineManifest(
        target=chosen.gpu.name,
        precision=chosen.precision.name,
        model_name=chosen.model.name,
        source=source,
        tools={**machine.versions, "nvidia-driver": machine.driver, _PACKAGE: _own_version()},
        limits=EngineLimits(context_length=chosen.limits.max_seq_len, vocab_size=chosen.model.vocab_size),
        tokens=read_token_ids(model_dir),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        files={
            str(path.relative_to(building)): EngineFile(sha256=sha256_of(path), size_bytes=path.stat().st_size)
            for path in files
        },
    )


def read_token_ids(model_dir: Path) -> TokenIds:
    """From generation_config.json, which knows every end of turn, else from config.json."""
    values: dict[str, Any] = {}
    for name in (CONFIG_NAME, "generation_config.json"):
        path = model_dir / name
        values |= json.loads(path.read_bytes()) if path.is_file() else {}
    eos = values.get("eos_token_id")
    bos = values.get("bos_token_id")
    listed = eos if isinstance(eos, list) else [eos]
    added = ids_added_to_any_text(model_dir / TOKENIZER_NAME)
    return TokenIds(bos=bos, eos=[token for token in listed if token is not None], add_bos=bos in added)


def _own_version() -> str:
    try:
        return version(_PACKAGE)
    except PackageNotFoundError:
        return "not installed"
