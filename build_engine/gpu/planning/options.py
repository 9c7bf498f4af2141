"""The options of GPU engines, shared by the `build`, `plan` and `fleet` commands and by the planner."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from build_engine.artifact.engine_dir import DEFAULT_ROOT
from build_engine.gpu.planning.calibration import DEFAULT_CALIBRATION
from build_engine.gpu.planning.memory_model import DEFAULT_KV_FRACTION, DEFAULT_RUNTIME_GIB, MemoryModel
from build_engine.targets.precisions import KvPrecisionName

DEFAULT_TRTLLM = "1.2.1"  # the newest stable version that builds engines


@dataclass(frozen=True)
class GpuOptions:
    """The options of one GPU engine besides model, target and precision, under their command line names.

    None and `auto`: chosen by the planner.
    """

    kv_cache_precision: KvPrecisionName = KvPrecisionName.AUTO
    tp: int = 1
    pp: int = 1
    ep: int = 1  # groups of GPUs that share out the experts; PyTorch runtime only
    max_batch_size: int | None = None
    max_seq_len: int | None = None  # prompt plus completion, in tokens
    max_num_tokens: int | None = None  # of one step
    calibration: str = DEFAULT_CALIBRATION
    root: Path = DEFAULT_ROOT
    tensorrt_llm: str = DEFAULT_TRTLLM
    runtime_gib: float = DEFAULT_RUNTIME_GIB
    kv_cache_fraction: float = DEFAULT_KV_FRACTION

    @property
    def memory_model(self) -> MemoryModel:
        return MemoryModel(self.kv_cache_fraction, self.runtime_gib)
