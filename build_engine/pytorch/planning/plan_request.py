"""Turns the options of a command line or a fleet file into a request of the PyTorch planner."""

from __future__ import annotations

from pathlib import Path

from build_engine.gpu.planning.options import GpuOptions
from build_engine.gpu.planning.plan_request import find_gpu
from build_engine.pytorch.checkpoint.model_directory import read_model_directory
from build_engine.pytorch.planning.planner import PyTorchRequest
from build_engine.targets.nvml import Nvml
from build_engine.targets.registry import AUTO


def pytorch_plan_request(
    target: str, model_dir: Path, precision: str | None, name: str | None, options: GpuOptions, nvml: Nvml
) -> PyTorchRequest:
    """Resolves target and model; `nvml` is queried only for the target `auto`. `precision` None or `auto`: on disk.

    Raises EngineRefusedError if target or model directory is invalid.
    """
    gpu, gpu_count = find_gpu(target, nvml)
    return PyTorchRequest(
        model=read_model_directory(model_dir, name),
        gpu=gpu,
        gpu_count=gpu_count,
        precision=None if precision == AUTO else precision,
        options=options,
    )
