"""The spec of a GPU engine, with every `auto` resolved. `constraints` checks whether it can be built."""

from __future__ import annotations

from dataclasses import dataclass

from build_engine.gpu.planning.memory_model import MemoryModel
from build_engine.gpu.planning.model_config import ModelConfig
from build_engine.gpu.planning.parameters import divide_up, kv_heads_on_gpu
from build_engine.targets.gpus import Gpu
from build_engine.targets.precisions import BFLOAT16, DTYPE_BYTES, FLOAT16, FLOAT32, KvPrecision, Precision


@dataclass(frozen=True)
class Limits:
    """The limits that are compiled into the engine. A server can lower them, but not raise them."""

    max_batch_size: int  # concurrent requests
    max_seq_len: int  # prompt plus completion, in tokens
    max_num_tokens: int  # of one step: prompt tokens, plus one per request that is generating


@dataclass(frozen=True)
class EngineSpec:
    model: ModelConfig
    gpu: Gpu
    gpu_count: int | None  # GPUs in this machine; None: not detected
    precision: Precision
    kv: KvPrecision
    tp: int
    pp: int
    limits: Limits
    trtllm_version: str
    memory_model: MemoryModel

    @property
    def dtype(self) -> str:
        """Data type of computations and of everything that is not quantized."""
        if self.precision.dtype:
            return self.precision.dtype
        return FLOAT16 if self.model.dtype == FLOAT16 else BFLOAT16

    @property
    def dtype_bytes(self) -> int:
        return DTYPE_BYTES[self.dtype]

    @property
    def kv_value_bytes(self) -> int:
        return self.kv.quantized_bytes or self.dtype_bytes

    @property
    def world_size(self) -> int:
        return self.tp * self.pp

    @property
    def layers_on_gpu(self) -> int:
        return divide_up(self.model.layers, self.pp)

    @property
    def kv_heads_on_gpu(self) -> int:
        return kv_heads_on_gpu(self.model, self.tp)

    @property
    def is_calibrated(self) -> bool:
        """Whether quantization needs calibration data: for activations, AWQ's search, or KV cache scales."""
        return self.precision.is_calibrated or self.kv.quantized_bytes is not None

    @property
    def has_context_fmha(self) -> bool:
        """Fused attention over prompts, which has no fp32 kernels."""
        return self.dtype != FLOAT32

    @property
    def has_fp8_context_fmha(self) -> bool:
        """build() requires an FP8 precision and an FP8 KV cache for it."""
        return self.precision.has_fp8_attention and self.kv.name == "fp8"

    @property
    def has_paged_context_fmha(self) -> bool:
        """Paged attention over prompts, required for the prefix cache and chunked prefill.

        build() disables it without fused attention, with an INT8 cache, and with an FP8 cache unless attention
        computes in FP8. build() only logs this; a plan has a note and the explicit flag.
        """
        if self.kv.quantized_bytes is None:
            return self.has_context_fmha
        return self.has_fp8_context_fmha
