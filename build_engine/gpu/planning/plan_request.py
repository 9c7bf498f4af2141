"""From the words of a command line or a fleet file to a plan's request."""

from __future__ import annotations

from pathlib import Path

from build_engine.errors import EngineRefusedError
from build_engine.gpu.planning.memory_model import ASSUMED, Assumptions
from build_engine.gpu.planning.model_config import read_model_config
from build_engine.gpu.planning.planner import PlanRequest
from build_engine.targets.gpus import Gpu
from build_engine.targets.nvml import PynvmlNvml, detect_gpu
from build_engine.targets.precisions import PRECISIONS, KvPrecisionName
from build_engine.targets.registry import find_target

AUTO = "auto"


def plan_request(
    target: str,
    model: Path,
    *,
    precision: str | None,
    kv: KvPrecisionName,
    name: str | None,
    tp: int,
    pp: int,
    max_batch_size: int | None,
    max_seq_len: int | None,
    max_num_tokens: int | None,
    calibration: str,
    trtllm_version: str,
    root: Path,
    assumptions: Assumptions = ASSUMED,
) -> PlanRequest:
    """EngineRefusedError when target, precision or model directory can't even be planned for."""
    if precision not in (None, AUTO, *PRECISIONS):
        raise EngineRefusedError(f"There is no precision {precision!r}. Choose one of {', '.join(PRECISIONS)}.")
    gpu, count = _gpu_of(target)
    return PlanRequest(
        model=read_model_config(model, name),
        model_dir=model,
        gpu=gpu,
        gpu_count=count,
        precision=None if precision == AUTO else precision,
        kv_precision=None if kv is KvPrecisionName.AUTO else kv.value,
        tp=tp,
        pp=pp,
        max_batch_size=max_batch_size,
        max_seq_len=max_seq_len,
        max_num_tokens=max_num_tokens,
        calibration=calibration,
        trtllm_version=trtllm_version,
        root=root,
        assumptions=assumptions,
    )


def _gpu_of(target: str) -> tuple[Gpu, int | None]:
    """The GPU, and how many there are where this machine was asked."""
    if target == AUTO:
        found = detect_gpu(PynvmlNvml())
        return found.gpu, found.count
    gpu = find_target(target).gpu
    if gpu is None:
        raise EngineRefusedError(f"Target {target} needs no plan: build it with `build --target {target}`.")
    return gpu, None
