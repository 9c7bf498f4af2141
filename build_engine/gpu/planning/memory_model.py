"""What a memory estimate takes for granted: numbers that no formula gives and that nothing here has measured."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1 << 20
GIB = 1 << 30

# KvCacheConfig.free_gpu_memory_fraction: of the memory left by weights, activations and runtime, so much becomes KV
# cache. Upstream's default (TensorRT-LLM docs/source/legacy/reference/memory.md), and TRTLLM_KV_CACHE_FREE_FRACTION's.
DEFAULT_KV_FRACTION = 0.9
# CUDA context, TensorRT's and cuBLAS's own. aiconfigurator (systems/*.yaml) measured 551 MiB and takes 3.5 GiB to be
# safe; between the two, since the share that the KV cache leaves is a margin already.
DEFAULT_RUNTIME_GIB = 1.0
# The decoder's buffers. memory.md names them, and has one log with 180 MB for them: a floor, and for each request two
# rows of 32-bit logits and three 32-bit values for each position (token, parent, log probability).
DECODER_BYTES = 200 * MIB
LOGIT_BYTES = 8
POSITION_BYTES = 12

_PARTS = 10_000  # of the KV cache's share: all arithmetic stays in whole numbers


@dataclass(frozen=True)
class Assumptions:
    """Those that can be set."""

    kv_fraction: float = DEFAULT_KV_FRACTION
    runtime_gib: float = DEFAULT_RUNTIME_GIB

    @property
    def runtime_bytes(self) -> int:
        return round(self.runtime_gib * GIB)

    def kv_pool(self, free_bytes: int) -> int:
        """The part of free memory that the runtime takes for the KV cache."""
        parts, whole = self.kv_ratio
        return max(0, free_bytes) * parts // whole

    @property
    def kv_ratio(self) -> tuple[int, int]:
        """The share as a ratio of whole numbers."""
        return round(self.kv_fraction * _PARTS), _PARTS


ASSUMED = Assumptions()  # unless somebody says otherwise
