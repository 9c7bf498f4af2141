"""The assumed constants of the memory estimate, which follow from no formula and have not been measured here."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1 << 20
GIB = 1 << 30

# KvCacheConfig.free_gpu_memory_fraction: the fraction of the memory left by weights, activations and runtime that is
# used for the KV cache. The default of upstream (TensorRT-LLM docs/source/legacy/reference/memory.md) and of
# TRTLLM_KV_CACHE_FREE_FRACTION.
DEFAULT_KV_FRACTION = 0.9
# CUDA context, TensorRT and cuBLAS. aiconfigurator (systems/*.yaml) measured 551 MiB and uses 3.5 GiB to be safe. The
# default is between the two, since the memory that the KV cache leaves is a margin already.
DEFAULT_RUNTIME_GIB = 1.0
# The decoder's buffers. memory.md names them and has one log with 180 MB for them. Assumed: a constant, plus two
# float32 rows of logits per request and three 32-bit values per position (token, parent, logprob).
DECODER_BYTES = 200 * MIB
LOGIT_BYTES = 8  # per request and vocabulary entry
POSITION_BYTES = 12  # per request and token of max_seq_len

_RATIO_DENOMINATOR = 10_000  # keeps the arithmetic in integers, so that plans are reproducible


@dataclass(frozen=True)
class MemoryModel:
    """The assumptions that can be set."""

    kv_fraction: float = DEFAULT_KV_FRACTION
    runtime_gib: float = DEFAULT_RUNTIME_GIB

    @property
    def runtime_bytes(self) -> int:
        return round(self.runtime_gib * GIB)

    def kv_pool(self, free_bytes: int) -> int:
        """Bytes of the KV cache if weights, activations and workspace leave `free_bytes`."""
        numerator, denominator = self.kv_ratio
        return max(0, free_bytes) * numerator // denominator

    @property
    def kv_ratio(self) -> tuple[int, int]:
        """`kv_fraction` as numerator and denominator."""
        return round(self.kv_fraction * _RATIO_DENOMINATOR), _RATIO_DENOMINATOR
