"""Bytes of keys and values for each token, and of states for each request, on one GPU.

Sources, all NVIDIA/TensorRT-LLM@b35ac1b6 in tensorrt_llm/_torch/pyexecutor: [kv] resource_manager.py,
KVCacheManager.get_cache_bytes_per_token: 2 x layers x ceil(kv heads / tp) x head size x bytes; NVFP4 has one more byte
for 16 values. Latent attention has one vector of kv_lora_rank + qk_rope_head_dim instead, which tp does not split
(_util.py, CacheType.SELFKONLY). [mamba] mamba_cache_manager.py, MambaCacheManager: states of the convolution in the
model's data type, of the recurrence in float32, allocated for max_batch_size.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from build_engine.gpu.planning.parameters import divide_up
from build_engine.pytorch.checkpoint.decoder import Attention, Decoder, DeltaNet, LatentAttention, Layer, Mamba2

TOKENS_PER_BLOCK = 32  # KvCacheConfig.tokens_per_block
FP8, NVFP4 = "fp8", "nvfp4"
# [kv] half a byte, and one FP8 scale for 16 values.
_QUANTIZED_BYTES = {FP8: Fraction(1), NVFP4: Fraction(1, 2) + Fraction(1, 16)}


def value_bytes(kv_precision: str, dtype_bytes: int) -> Fraction:
    """Bytes of one stored value; `kv_precision` fp8, nvfp4, or 16 bits under any other name."""
    return _QUANTIZED_BYTES.get(kv_precision, Fraction(dtype_bytes))


def kv_elements_per_token(layer: Layer, tp: int) -> int:
    """[kv] Values that one layer stores for a token."""
    mixer = layer.mixer
    if isinstance(mixer, Attention):
        return 2 * divide_up(mixer.kv_heads, tp) * mixer.head_dim
    if isinstance(mixer, LatentAttention):
        return mixer.kv_rank + mixer.rope_dim
    return 0


def kv_bytes_per_token(layers: Sequence[Layer], tp: int, per_value: Fraction) -> int:
    """Of a token that every layer keeps."""
    return _round_up(sum(kv_elements_per_token(layer, tp) for layer in layers) * per_value)


def kv_bytes_per_request(
    layers: Sequence[Layer], tp: int, per_value: Fraction, tokens: int, *, with_windows: bool
) -> int:
    """Of one request of `tokens` tokens, in whole blocks.

    With windows, a layer keeps the blocks that overlap its window, one more than the window's own.
    """
    elements = 0
    for layer in layers:
        window = layer.mixer.window if with_windows and isinstance(layer.mixer, Attention) else None
        blocks = divide_up(tokens, TOKENS_PER_BLOCK)
        if window is not None:
            blocks = min(blocks, divide_up(window, TOKENS_PER_BLOCK) + 1)
        elements += blocks * TOKENS_PER_BLOCK * kv_elements_per_token(layer, tp)
    return _round_up(elements * per_value)


def state_bytes_per_request(decoder: Decoder, layers: Sequence[Layer], tp: int, dtype_bytes: int) -> int:
    """[mamba] Of layers that keep a state of constant size."""
    total = 0
    for layer in layers:
        mixer = layer.mixer
        if isinstance(mixer, DeltaNet):
            recurrent = divide_up(mixer.value_heads, tp) * mixer.value_dim * mixer.key_dim
        elif isinstance(mixer, Mamba2):
            recurrent = divide_up(mixer.heads, tp) * mixer.head_dim * mixer.state_size
        else:
            continue
        convolution = divide_up(mixer.convolved, tp) * (mixer.kernel - 1)
        total += recurrent * decoder.state_bytes_per_value + convolution * dtype_bytes
    return total


def _round_up(value: Fraction) -> int:
    return -(-value.numerator // value.denominator)
