"""Turns the options of a command line or a fleet file into the planner's request."""

from __future__ import annotations

from pathlib import Path

from build_engine.errors import EngineRefusedError
from build_engine.gpu.planning.model_config import read_model_config
from build_engine.gpu.planning.options import GpuOptions
from build_engine.gpu.planning.planner import PlanRequest
from build_engine.targets.gpus import Gpu
from build_engine.targets.nvml import Nvml, detect_gpu
from build_engine.targets.precisions import PRECISIONS
from build_engine.targets.registry import AUTO, find_target


def plan_request(
    target: str, model_dir: Path, precision: str | None, name: str | None, options: GpuOptions, nvml: Nvml
) -> PlanRequest:
    """Resolves target and model; `nvml` is queried only for the target `auto`. `precision` None is `auto`.

    Raises EngineRefusedError if target, precision or model directory is invalid.
    """
    if precision not in (None, AUTO, *PRECISIONS):
        raise EngineRefusedError(f"Unknown precision {precision!r}. Choose one of {', '.join(PRECISIONS)}.")
    gpu, gpu_count = find_gpu(target, nvml)
    return PlanRequest(
        model=read_model_config(model_dir, name),
        model_dir=model_dir,
        gpu=gpu,
        gpu_count=gpu_count,
        precision=None if precision == AUTO else precision,
        options=options,
    )


def find_gpu(target: str, nvml: Nvml) -> tuple[Gpu, int | None]:
    """The GPU, and the number of them in this machine if it was detected.

    Raises EngineRefusedError for an unknown target or a CPU.
    """
    if target == AUTO:
        detected = detect_gpu(nvml)
        return detected.gpu, detected.count
    gpu = find_target(target).gpu
    if gpu is None:
        raise EngineRefusedError(f"Target {target} needs no plan. Build it with `build --target {target}`.")
    return gpu, None
