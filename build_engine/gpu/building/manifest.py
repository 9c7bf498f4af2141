"""Writes build.json and the manifest of a GPU engine."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from build_engine.artifact.model_directory import read_token_ids
from build_engine.gpu.planning.plan_json import plan_json
from build_engine.gpu.planning.planner import Plan
from llm_pipeline.engine_files.manifest import (
    Calibration,
    EngineFile,
    EngineLimits,
    EngineManifest,
    GpuBuild,
    SourceModel,
    sha256_of,
)

BUILD_NAME = "build.json"  # for people: the plan with its memory estimate and commands
_PACKAGE = "triton-completions"


@dataclass(frozen=True)
class BuildMachine:
    """The building machine. The engine runs only on its SM and with its TensorRT-LLM version."""

    gpu_name: str
    sm: int
    gpu_count: int  # of that SM
    driver: str
    cuda: str | None
    tensorrt_llm: str
    tensorrt: str


def make_manifest(
    plan: Plan,
    model_dir: Path,
    building: Path,
    source: SourceModel,
    machine: BuildMachine,
    calibration: Calibration | None,
) -> EngineManifest:
    """Writes build.json, then hashes every file of the engine directory `building`."""
    (building / BUILD_NAME).write_text(json.dumps({"plan": plan_json(plan)}, indent=2) + "\n", encoding="utf-8")
    spec = plan.spec
    files = [path for path in sorted(building.rglob("*")) if path.is_file()]
    return EngineManifest(
        target=spec.gpu.name,
        precision=spec.precision.name,
        model_name=spec.model.name,
        source=source,
        tools={_PACKAGE: _own_version()},
        limits=EngineLimits(context_length=spec.limits.max_seq_len, vocab_size=spec.model.vocab_size),
        tokens=read_token_ids(model_dir),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        files={
            path.relative_to(building).as_posix(): EngineFile(sha256=sha256_of(path), size_bytes=path.stat().st_size)
            for path in files
        },
        gpu=_gpu_build(plan, machine, calibration),
    )


def _gpu_build(plan: Plan, machine: BuildMachine, calibration: Calibration | None) -> GpuBuild:
    spec = plan.spec
    return GpuBuild(
        gpu_name=machine.gpu_name,
        sm=machine.sm,
        driver=machine.driver,
        cuda=machine.cuda,
        tensorrt_llm=machine.tensorrt_llm,
        tensorrt=machine.tensorrt,
        tp=spec.tp,
        pp=spec.pp,
        kv_cache_precision=spec.kv.name,
        max_batch_size=spec.limits.max_batch_size,
        max_num_tokens=spec.limits.max_num_tokens,
        has_paged_context=spec.has_paged_context_fmha,
        calibration=calibration,
    )


def _own_version() -> str:
    try:
        return version(_PACKAGE)
    except PackageNotFoundError:
        return "not installed"
