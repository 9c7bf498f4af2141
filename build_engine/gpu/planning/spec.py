"""One model on one kind of GPU, with every `auto` resolved. Whether it can be built is for `refusals` to say."""

from __future__ import annotations

from dataclasses import dataclass

from build_engine.gpu.planning.memory_model import ASSUMED, Assumptions
from build_engine.gpu.planning.model_config import ModelConfig
from build_engine.gpu.planning.parameters import divide_up, kv_heads_on_gpu
from build_engine.targets.gpus import Gpu
from build_engine.targets.precisions import BFLOAT16, DTYPE_BYTES, FLOAT16, FLOAT32, KvPrecision, Precision


@dataclass(frozen=True)
class Limits:
    """What the engine is built for; a server can lower these, not raise them."""

    max_batch_size: int  # requests that run at once
    max_seq_len: int  # prompt plus completion, in tokens
    max_num_tokens: int  # of one step: prompts being read and one for each running request


@dataclass(frozen=True)
class EngineSpec:
    model: ModelConfig
    gpu: Gpu
    gpu_count: int | None  # of this machine, where it was asked
    precision: Precision
    kv: KvPrecision
    tp: int
    pp: int
    limits: Limits
    trtllm_version: str
    assumptions: Assumptions = ASSUMED

    @property
    def dtype(self) -> str:
        """Of computations, and of what stays unquantised."""
        if self.precision.dtype:
            return self.precision.dtype
        return FLOAT16 if self.model.dtype == FLOAT16 else BFLOAT16

    @property
    def dtype_bytes(self) -> int:
        return DTYPE_BYTES[self.dtype]

    @property
    def kv_value_bytes(self) -> int:
        return self.kv.quantised_bytes or self.dtype_bytes

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
        """Whether the quantiser has to see text: for activations, for AWQ's search, or for the cache's scales."""
        return self.precision.is_calibrated or self.kv.quantised_bytes is not None

    @property
    def has_context_fmha(self) -> bool:
        """Fused attention over prompts: it has no fp32 kernels."""
        return self.dtype != FLOAT32

    @property
    def has_fp8_context_fmha(self) -> bool:
        """build() wants an FP8 precision and an FP8 cache for it."""
        return self.precision.has_fp8_attention and self.kv.name == "fp8"

    @property
    def has_paged_context_fmha(self) -> bool:
        """What prefix reuse and chunked prefill need.

        build() switches it off without fused attention, with an INT8 cache, and with an FP8 cache unless attention
        computes in FP8. The plan says so in its notes and on the command line, where build() only logs it.
        """
        if self.kv.quantised_bytes is None:
            return self.has_context_fmha
        return self.has_fp8_context_fmha
