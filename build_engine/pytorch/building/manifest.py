"""Writes build.json and the manifest of an engine directory for the PyTorch runtime."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from build_engine.artifact.hashing import hash_files
from build_engine.artifact.model_directory import digest_of, read_token_ids
from build_engine.pytorch.building.source_files import BUILD_NAME
from build_engine.pytorch.planning.plan import PyTorchPlan, PyTorchSpec
from build_engine.pytorch.planning.plan_json import plan_json
from llm_pipeline.engine_files.manifest import (
    TOKENIZER_NAME,
    EngineFile,
    EngineLimits,
    EngineManifest,
    PyTorchModel,
    SourceModel,
)

_PACKAGE = "triton-completions"


def describe_source(spec: PyTorchSpec, files: dict[str, EngineFile]) -> SourceModel:
    """The sha256 is over names and hashes of `files`: everything that is linked or copied."""
    return SourceModel(
        name=spec.model.name,
        sha256=digest_of(files),
        size_bytes=sum(file.size_bytes for file in files.values()),
        architecture=spec.model.architecture,
        quantization=spec.model.quantization.algorithm if spec.model.quantization else spec.model.dtype,
    )


def make_manifest(
    plan: PyTorchPlan,
    building: Path,
    source: SourceModel,
    files: dict[str, EngineFile],
    own_files: Sequence[str] = (),
    *,
    is_linked: bool,
) -> EngineManifest:
    """Writes build.json. `files` are those of the model; the tokenizer and `own_files` are in `building` already."""
    (building / BUILD_NAME).write_text(json.dumps({"plan": plan_json(plan)}, indent=2) + "\n", encoding="utf-8")
    spec = plan.spec
    written = hash_files(
        {name: building / name for name in (BUILD_NAME, TOKENIZER_NAME, *own_files)}, lambda amount: None
    )
    return EngineManifest(
        target=spec.gpu.name,
        precision=spec.precision,
        model_name=spec.model.name,
        source=source,
        tools={_PACKAGE: _own_version()},
        limits=EngineLimits(context_length=spec.limits.max_seq_len, vocab_size=spec.model.vocab_size),
        tokens=read_token_ids(building),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        files=dict(sorted((files | written).items())),
        pytorch=describe_model(spec, is_linked),
    )


def describe_model(spec: PyTorchSpec, is_linked: bool) -> PyTorchModel:
    quantization = spec.model.quantization
    return PyTorchModel.model_validate(
        {
            "architecture": spec.model.architecture,
            "tensorrt_llm": spec.trtllm_version,
            "sm": spec.gpu.sm,
            "quantization": quantization.algorithm if quantization else None,
            "kv_cache_precision": spec.kv_cache_dtype,
            "tp": spec.tp,
            "pp": spec.pp,
            "ep": spec.ep,
            "max_batch_size": spec.limits.max_batch_size,
            "max_num_tokens": spec.limits.max_num_tokens,
            "is_hybrid": spec.model.decoder is not None and spec.model.decoder.is_hybrid,
            "is_linked": is_linked,
        }
    )


def _own_version() -> str:
    try:
        return version(_PACKAGE)
    except PackageNotFoundError:
        return "not installed"
