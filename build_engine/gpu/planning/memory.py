"""Estimates the memory of an engine on each GPU, in bytes, before it is built.

Sources: [memory] TensorRT-LLM docs/source/legacy/reference/memory.md; [aiconfigurator] NVIDIA's sizing tool,
ai-dynamo/aiconfigurator src/aiconfigurator/sdk/backends/trtllm_backend.py and systems/*.yaml, measured on engines.
Constants that are assumed and not measured are in memory_model.py. The estimate is for the GPU that needs the most
memory: the first pipeline stage has the embedding, the last one the output head.
"""

from __future__ import annotations

from dataclasses import dataclass

from build_engine.gpu.planning.memory_model import DECODER_BYTES, LOGIT_BYTES, MIB, POSITION_BYTES
from build_engine.gpu.planning.parameters import divide_up, layer_matrices, layer_vector_elements, vocabulary_elements
from build_engine.gpu.planning.spec import EngineSpec

TOKENS_PER_BLOCK = 32  # trtllm-build's default KV cache block
# [aiconfigurator] live hidden-size vectors per token of a step, in tenths, by tensor parallelism.
_ACTIVATION_TENTHS = {1: 110, 2: 65, 4: 50}
_MOE_ACTIVATION_TENTHS = {1: 220, 2: 130, 4: 100}
_MIN_ACTIVATION_BYTES = 70 * MIB  # [aiconfigurator]
_NCCL_BYTES = {1: 0, 2: 342 * MIB, 4: 392 * MIB}  # [aiconfigurator] by number of GPUs


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on each GPU."""

    weights_bytes: int
    kv_cache_bytes_per_token: int
    kv_cache_bytes: int  # max_batch_size requests of max_seq_len tokens
    activation_bytes: int
    workspace_bytes: int  # NCCL, runtime and decoder
    runtime_bytes: int
    decoder_bytes: int
    total_bytes: int
    gpu_bytes: int
    kv_pool_bytes: int  # available to the KV cache at run time
    largest_batch_that_fits: int  # requests of max_seq_len tokens; 0: not even one

    @property
    def margin_bytes(self) -> int:
        """Bytes that stay free when the KV cache uses its whole pool: the error that the other estimates may have."""
        return max(0, self.gpu_bytes - (self.total_bytes - self.kv_cache_bytes) - self.kv_pool_bytes)

    @property
    def fits(self) -> bool:
        return self.kv_cache_bytes <= self.kv_pool_bytes


def estimate_memory(spec: EngineSpec) -> MemoryEstimate:
    weights = weights_bytes(spec)
    activation = activation_bytes(spec)
    workspace = workspace_bytes(spec)
    cache = spec.limits.max_batch_size * request_kv_bytes(spec)
    gpu = spec.gpu.memory_bytes
    return MemoryEstimate(
        weights_bytes=weights,
        kv_cache_bytes_per_token=kv_bytes_per_token(spec),
        kv_cache_bytes=cache,
        activation_bytes=activation,
        workspace_bytes=workspace,
        runtime_bytes=spec.memory_model.runtime_bytes,
        decoder_bytes=decoder_bytes(spec),
        total_bytes=weights + cache + activation + workspace,
        gpu_bytes=gpu,
        kv_pool_bytes=spec.memory_model.kv_pool(gpu - weights - activation - workspace),
        largest_batch_that_fits=largest_batch(spec),
    )


def weights_bytes(spec: EngineSpec) -> int:
    """Quantized matrices with their scales; embedding, head, router, norms and biases in `dtype`.

    [aiconfigurator] parameters x bytes / (tp x pp), here per matrix, to include replicated heads and scales. TensorRT
    keeps one table for tied embeddings (share_embedding_table in builder.py), unless they are on different stages.
    """
    model, tp = spec.model, spec.tp
    layer = layer_vector_elements(model, tp) * spec.dtype_bytes
    for matrix in layer_matrices(model, tp):
        if matrix.is_quantized:
            layer += matrix.copies * spec.precision.matrix_bytes(matrix.outputs, matrix.inputs)
        else:
            layer += matrix.elements * spec.dtype_bytes
    tables = 1 if model.tied_embeddings or spec.pp > 1 else 2
    table_elements = tables * vocabulary_elements(model, tp) + model.hidden_size
    return spec.layers_on_gpu * layer + table_elements * spec.dtype_bytes


def kv_bytes_per_token(spec: EngineSpec) -> int:
    """[memory] 2 (key and value) x layers x KV heads on this GPU x head size x bytes per value."""
    heads = spec.kv_heads_on_gpu * spec.model.head_dim
    return 2 * spec.layers_on_gpu * heads * spec.kv_value_bytes


def request_kv_bytes(spec: EngineSpec) -> int:
    """One request of max_seq_len tokens, rounded up to complete blocks."""
    blocks = divide_up(spec.limits.max_seq_len, TOKENS_PER_BLOCK)
    return blocks * TOKENS_PER_BLOCK * kv_bytes_per_token(spec)


def activation_bytes(spec: EngineSpec) -> int:
    """[aiconfigurator] bytes x max_num_tokens x heads x head size x a factor; allocated for the engine's maximum."""
    model = spec.model
    factors = _MOE_ACTIVATION_TENTHS if model.experts > 1 else _ACTIVATION_TENTHS
    width = spec.dtype_bytes * model.heads * model.head_dim
    estimate = width * spec.limits.max_num_tokens * _entry_for(factors, spec.tp) // 10
    return max(_MIN_ACTIVATION_BYTES, estimate)


def workspace_bytes(spec: EngineSpec) -> int:
    """Buffers of NCCL, the runtime and the decoder."""
    return _nccl_bytes(spec) + spec.memory_model.runtime_bytes + decoder_bytes(spec)


def decoder_bytes(spec: EngineSpec) -> int:
    return DECODER_BYTES + spec.limits.max_batch_size * _decoder_request_bytes(spec)


def largest_batch(spec: EngineSpec) -> int:
    """Maximum number of concurrent requests of max_seq_len tokens.

    Solves batch x request <= fraction x (free - batch x decoder) for the batch.
    """
    memory_model = spec.memory_model
    workspace = _nccl_bytes(spec) + memory_model.runtime_bytes + DECODER_BYTES
    fixed = weights_bytes(spec) + activation_bytes(spec) + workspace
    free = max(0, spec.gpu.memory_bytes - fixed)
    request, decoder = request_kv_bytes(spec), _decoder_request_bytes(spec)
    numerator, denominator = memory_model.kv_ratio
    return numerator * free // (denominator * request + numerator * decoder)


def _nccl_bytes(spec: EngineSpec) -> int:
    return _entry_for(_NCCL_BYTES, spec.world_size)


def _decoder_request_bytes(spec: EngineSpec) -> int:
    return spec.model.vocab_size * LOGIT_BYTES + spec.limits.max_seq_len * POSITION_BYTES


def _entry_for(table: dict[int, int], gpus: int) -> int:
    """The entry of the largest number of GPUs in `table` that is at most `gpus`."""
    return table[max(number for number in table if number <= gpus)]
