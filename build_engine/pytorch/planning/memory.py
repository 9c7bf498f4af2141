"""Estimates the memory of a served model directory on each GPU, in bytes.

Upstream measures: it runs max_num_tokens once and gives the KV cache `free_gpu_memory_fraction` of what the peak leaves
(KvCacheCreator in tensorrt_llm/_torch/pyexecutor/_util.py, NVIDIA/TensorRT-LLM@b35ac1b6). The plan estimates the same
parts. [aiconfigurator] is NVIDIA's sizing tool, ai-dynamo/aiconfigurator@00ae653b
src/aiconfigurator/sdk/backends/trtllm_backend.py, `_get_memory_usage`.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

from build_engine.gpu.planning.memory_model import LOGIT_BYTES, MIB
from build_engine.pytorch.checkpoint.decoder import Attention, Decoder, Experts, LatentAttention
from build_engine.pytorch.planning.kv_cache import (
    kv_bytes_per_request,
    kv_bytes_per_token,
    state_bytes_per_request,
    value_bytes,
)
from build_engine.pytorch.planning.parameters import Split
from build_engine.pytorch.planning.plan import PyTorchMemory, PyTorchSpec
from build_engine.pytorch.planning.weights import computed_weights_bytes, stage_layers, stored_weights_bytes
from build_engine.targets.precisions import DTYPE_BYTES

# [aiconfigurator] live vectors per token of a step, in tenths, by tensor parallelism.
_ACTIVATION_TENTHS = {1: 110, 2: 65, 4: 50}
_MOE_ACTIVATION_TENTHS = {1: 220, 2: 130, 4: 100}
_MIN_ACTIVATION_BYTES = 70 * MIB  # [aiconfigurator]
_NCCL_BYTES = {1: 0, 2: 342 * MIB, 4: 392 * MIB}  # [aiconfigurator] systems/*.yaml, by number of GPUs
# Captured batch sizes: 1, 2, 4 and multiples of 8 up to 128 (CudaGraphConfig; a public log of 1.1.0rc3 prints them).
_FIRST_GRAPHS, _GRAPH_STEP, _LAST_GRAPH = (1, 2, 4), 8, 128
# Assumed: no figure of TensorRT-LLM was found. vLLM measured 0.62 GB for 35 graphs of a model with 80 layers on each of
# 8 GPUs (vllm-project/vllm#5515), 0.21 MiB for a layer and graph.
_GRAPH_LAYER_BYTES = MIB // 4
_MAX_BATCH = 1 << 20  # of the search for the largest batch


def estimate_memory(spec: PyTorchSpec) -> PyTorchMemory | None:
    """None if config.json lacks what an estimate needs."""
    decoder = spec.model.decoder
    if decoder is None or (spec.model.weights is None and not spec.model.knows_layers):
        return None
    memory = _memory(spec, decoder, spec.limits.max_batch_size)
    windowed = _request_bytes(spec, decoder, with_windows=True)
    return replace(
        memory,
        largest_batch_that_fits=_largest_batch(spec, decoder, memory.kv_cache_bytes_per_request),
        largest_batch_with_windows=_largest_batch(spec, decoder, windowed),
    )


def _memory(spec: PyTorchSpec, decoder: Decoder, batch: int) -> PyTorchMemory:
    per_request = _request_bytes(spec, decoder, with_windows=False)
    partial = PyTorchMemory(
        weights_bytes=_weights_bytes(spec, decoder),
        are_weights_read=spec.model.weights is not None,
        kv_cache_bytes_per_token=max(
            kv_bytes_per_token(layers, spec.tp, _value_bytes(spec)) for layers in stage_layers(decoder.layers, spec.pp)
        ),
        kv_cache_bytes_per_request=per_request,
        kv_cache_bytes=batch * per_request,
        state_bytes=batch * _state_bytes(spec, decoder),
        activation_bytes=activation_bytes(spec, decoder),
        cuda_graph_bytes=cuda_graph_bytes(spec, decoder, batch),
        workspace_bytes=_workspace_bytes(spec, decoder, batch),
        runtime_bytes=spec.memory_model.runtime_bytes,
        gpu_bytes=spec.gpu.memory_bytes,
        kv_pool_bytes=0,
        largest_batch_that_fits=0,
        largest_batch_with_windows=0,
    )
    return replace(partial, kv_pool_bytes=spec.memory_model.kv_pool(partial.gpu_bytes - partial.fixed_bytes))


def _largest_batch(spec: PyTorchSpec, decoder: Decoder, per_request: int) -> int:
    """The largest batch whose keys and values fit into the pool that is left beside its states and graphs."""
    base = _memory(spec, decoder, 0)
    state = _state_bytes(spec, decoder)

    def fits(batch: int) -> bool:
        graphs = cuda_graph_bytes(spec, decoder, batch)
        workspace = _workspace_bytes(spec, decoder, batch)
        fixed = base.weights_bytes + base.activation_bytes + graphs + workspace + batch * state
        return fixed < base.gpu_bytes and batch * per_request <= spec.memory_model.kv_pool(base.gpu_bytes - fixed)

    low, high = 0, _MAX_BATCH
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _weights_bytes(spec: PyTorchSpec, decoder: Decoder) -> int:
    split, width = Split(spec.tp, spec.ep), _dtype_bytes(spec)
    if spec.model.weights is not None:
        return stored_weights_bytes(spec.model.weights, decoder, spec.format, width, split, spec.pp)
    return computed_weights_bytes(decoder, spec.format, width, split, spec.pp)


def _request_bytes(spec: PyTorchSpec, decoder: Decoder, *, with_windows: bool) -> int:
    tokens, per_value = spec.limits.max_seq_len, _value_bytes(spec)
    return max(
        kv_bytes_per_request(layers, spec.tp, per_value, tokens, with_windows=with_windows)
        for layers in stage_layers(decoder.layers, spec.pp)
    )


def _state_bytes(spec: PyTorchSpec, decoder: Decoder) -> int:
    return max(
        state_bytes_per_request(decoder, layers, spec.tp, _dtype_bytes(spec))
        for layers in stage_layers(decoder.layers, spec.pp)
    )


def activation_bytes(spec: PyTorchSpec, decoder: Decoder) -> int:
    """[aiconfigurator] bytes x max_num_tokens x heads x head size x a factor. Its measurements are of dense models and
    of experts like Mixtral's; the width is at least hidden_size here, for models whose heads are narrower.
    """
    experts = [part for part in decoder.feed_forwards if isinstance(part, Experts)]
    factors = _MOE_ACTIVATION_TENTHS if experts else _ACTIVATION_TENTHS
    width = _dtype_bytes(spec) * max(decoder.hidden_size, _attention_width(decoder))
    estimate = width * spec.limits.max_num_tokens * _entry_for(factors, spec.tp) // 10
    if experts and spec.format.name == "fp8-block":
        # [aiconfigurator] the workspace of block-scaled experts: one float32 for each 128 values of each routed token.
        routed = max(part.count * part.per_token for part in experts)
        estimate += spec.limits.max_num_tokens * decoder.hidden_size * routed * 4 // (128 * spec.ep)
    return max(_MIN_ACTIVATION_BYTES, estimate)


def _attention_width(decoder: Decoder) -> int:
    """Heads x head size; of the values with latent attention."""
    widths = [0]
    for mixer in decoder.mixers:
        if isinstance(mixer, Attention):
            widths.append(mixer.heads * mixer.head_dim)
        elif isinstance(mixer, LatentAttention):
            widths.append(mixer.heads * mixer.value_dim)
    return max(widths)


def cuda_graph_bytes(spec: PyTorchSpec, decoder: Decoder, batch: int) -> int:
    last = min(batch, _LAST_GRAPH)
    graphs = sum(size <= last for size in _FIRST_GRAPHS) + last // _GRAPH_STEP
    return graphs * _GRAPH_LAYER_BYTES * max(len(layers) for layers in stage_layers(decoder.layers, spec.pp))


def _workspace_bytes(spec: PyTorchSpec, decoder: Decoder, batch: int) -> int:
    """CUDA, PyTorch and cuBLAS (--runtime-gib), NCCL, and two float32 rows of logits for each request."""
    sampler = batch * decoder.vocab_size * LOGIT_BYTES
    return spec.memory_model.runtime_bytes + _entry_for(_NCCL_BYTES, spec.world_size) + sampler


def _value_bytes(spec: PyTorchSpec) -> Fraction:
    return value_bytes(spec.kv_precision, _dtype_bytes(spec))


def _dtype_bytes(spec: PyTorchSpec) -> int:
    return DTYPE_BYTES[spec.model.dtype]


def _entry_for(table: dict[int, int], gpus: int) -> int:
    """The entry of the largest number of GPUs in `table` that is at most `gpus`."""
    return table[max(number for number in table if number <= gpus)]
