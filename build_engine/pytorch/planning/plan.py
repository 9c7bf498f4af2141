"""The plan of a model directory for the PyTorch runtime: the resolved spec, its memory, refusals and notes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from build_engine.gpu.planning.memory_model import MemoryModel
from build_engine.gpu.planning.spec import Limits
from build_engine.pytorch.checkpoint.model_directory import ModelDirectory
from build_engine.pytorch.planning.formats import WeightFormat
from build_engine.targets.gpus import Gpu


@dataclass(frozen=True)
class PyTorchSpec:
    """Everything that a plan depends on, with every `auto` resolved."""

    model: ModelDirectory
    gpu: Gpu
    gpu_count: int | None  # GPUs in this machine; None: not detected
    format: WeightFormat
    kv_precision: str  # 16 bits: bf16, fp16 or fp32 as the model's data type; or fp8, nvfp4
    kv_cache_dtype: str  # KvCacheConfig.dtype and the manifest's kv_cache_precision: auto, fp8 or nvfp4
    tp: int
    pp: int
    ep: int
    limits: Limits
    trtllm_version: str
    memory_model: MemoryModel

    @property
    def world_size(self) -> int:
        return self.tp * self.pp

    @property
    def precision(self) -> str:
        """The name in --precision, in the directory's path and in the manifest."""
        return self.format.name


@dataclass(frozen=True)
class PyTorchMemory:
    """Bytes on each GPU; of several pipeline stages, each figure is that of the stage with the most."""

    weights_bytes: int
    are_weights_read: bool  # from the headers; else computed from config.json
    kv_cache_bytes_per_token: int
    kv_cache_bytes_per_request: int  # of max_seq_len tokens, in whole blocks
    kv_cache_bytes: int  # of max_batch_size requests
    state_bytes: int  # of layers with a state of constant size, for max_batch_size requests
    activation_bytes: int
    cuda_graph_bytes: int
    workspace_bytes: int  # CUDA, PyTorch, NCCL and the sampler
    runtime_bytes: int  # the assumed part of the workspace
    gpu_bytes: int
    kv_pool_bytes: int  # for keys and values: the KV cache's share of what the rest leaves
    largest_batch_that_fits: int  # concurrent requests of max_seq_len tokens; 0: not even one
    largest_batch_with_windows: int  # if layers with a window kept its tokens only

    @property
    def fixed_bytes(self) -> int:
        """All but keys and values."""
        parts = (self.weights_bytes, self.activation_bytes, self.cuda_graph_bytes, self.workspace_bytes)
        return sum(parts) + self.state_bytes

    @property
    def total_bytes(self) -> int:
        return self.fixed_bytes + self.kv_cache_bytes

    @property
    def fits(self) -> bool:
        return self.fixed_bytes < self.gpu_bytes and self.kv_cache_bytes <= self.kv_pool_bytes

    @property
    def margin_bytes(self) -> int:
        """Bytes that stay free when the KV cache uses its whole pool: the error that the other estimates may have."""
        return max(0, self.gpu_bytes - self.fixed_bytes - self.kv_pool_bytes)

    @property
    def kv_tokens(self) -> int:
        """Tokens that the pool holds."""
        return self.kv_pool_bytes // self.kv_cache_bytes_per_token if self.kv_cache_bytes_per_token else 0


@dataclass(frozen=True)
class PyTorchPlan:
    """`engine_dir` is None if there are refusals."""

    spec: PyTorchSpec
    memory: PyTorchMemory | None  # None: config.json lacks what an estimate needs, which is refused
    refusals: tuple[str, ...]  # one sentence for each violated constraint
    notes: tuple[str, ...]
    engine_dir: Path | None

    @property
    def accepted(self) -> bool:
        return not self.refusals
