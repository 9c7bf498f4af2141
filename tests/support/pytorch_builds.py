"""Builds of tiny model directories for the PyTorch runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from build_engine.artifact.result import BuildResult
from build_engine.gpu.planning.options import GpuOptions
from build_engine.progress import BuildProgress, SilentProgress
from build_engine.pytorch.building.run import BuildOptions, build_model
from build_engine.pytorch.checkpoint.model_directory import read_model_directory
from build_engine.pytorch.planning.plan import PyTorchPlan
from build_engine.pytorch.planning.planner import PyTorchRequest, plan_model
from build_engine.targets.gpus import GPUS
from tests.fakes.tensorrt_llm_build import FakeNvml
from tests.support.hugging_face_models import TinyDirectory

SHARDS = 3


class InstallLlmApi(Protocol):
    """Installs the stand-in for the LLM API. `script` are fields of tests/fakes/tensorrt_llm/script.py."""

    def __call__(self, **script: Any) -> None: ...


def write_model(directory: Path, *, seed: int = 11, shards: int = SHARDS) -> Path:
    """A Llama of a few kilobytes in bfloat16."""
    TinyDirectory(type_name="BF16", shards=shards, seed=seed).write(directory)
    (directory / "generation_config.json").write_text('{"eos_token_id": [2, 0]}')
    (directory / "tokenizer_config.json").write_text("{}")
    return directory


def plan_for(model_dir: Path, root: Path, target: str = "h100", **options: Any) -> PyTorchPlan:
    """`options` are fields of GpuOptions."""
    return plan_model(
        PyTorchRequest(read_model_directory(model_dir), GPUS[target], options=GpuOptions(root=root, **options))
    )


def build(
    model_dir: Path, root: Path, options: BuildOptions | None = None, progress: BuildProgress | None = None, **plan: Any
) -> BuildResult:
    return build_model(plan_for(model_dir, root, **plan), FakeNvml(), progress or SilentProgress(), options)
