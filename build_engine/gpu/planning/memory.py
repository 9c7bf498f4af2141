"""How many bytes an engine takes on each GPU, as an estimate made before anything is built.

Sources: [memory] TensorRT-LLM docs/source/legacy/reference/memory.md; [aiconfigurator] NVIDIA's sizing tool,
ai-dynamo/aiconfigurator src/aiconfigurator/sdk/backends/trtllm_backend.py and systems/*.yaml, measured on engines.
Assumptions, not measured here, are in assumptions.py. Everything is for the GPU that holds most: a first stage has
the embedding, the last one the output head.
"""

from __future__ import annotations

from dataclasses import dataclass

from build_engine.gpu.planning.memory_model import DECODER_BYTES, LOGIT_BYTES, MIB, POSITION_BYTES
from build_engine.gpu.planning.parameters import divide_up, layer_matrices, layer_vector_elements, vocabulary_elements
from build_engine.gpu.planning.spec import EngineSpec

TOKENS_PER_BLOCK = 32  # trtllm-build's default; a request takes whole blocks
# [aiconfigurator] hidden-size vectors that live at once for each token of a step, by tensor parallelism; tenths.
_ACTIVATION_TENTHS = {1: 110, 2: 65, 4: 50}
_MOE_ACTIVATION_TENTHS = {1: 220, 2: 130, 4: 100}
_LEAST_ACTIVATION_BYTES = 70 * MIB  # [aiconfigurator]
_NCCL_BYTES = {1: 0, 2: 342 * MIB, 4: 392 * MIB}  # [aiconfigurator] by GPUs


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on each GPU."""

    weights_bytes: int
    kv_cache_bytes_per_token: int
    kv_cache_bytes: int  # max_batch_size requests of max_seq_len tokens
    activation_bytes: int
    workspace_bytes: int  # NCCL, and the two that are assumed
    runtime_bytes: int
    decoder_bytes: int
    total_bytes: int
    gpu_bytes: int
    kv_pool_bytes: int  # what the runtime would give to the KV cache
    largest_batch_that_fits: int  # at max_seq_len; 0: not one request

    @property
    def assumed_bytes(self) -> int:
        """Of the total, what rests on assumptions and on no formula of upstream's."""
        return self.runtime_bytes + self.decoder_bytes

    @property
    def margin_bytes(self) -> int:
        """What stays free when the KV cache has taken all that it is given: how far the rest may be off."""
        return max(0, self.gpu_bytes - (self.total_bytes - self.kv_cache_bytes) - self.kv_pool_bytes)

    @property
    def fits(self) -> bool:
        return self.kv_cache_bytes <= self.kv_pool_bytes


def estimate_memory(combination: EngineSpec) -> MemoryEstimate:
    weights = weights_bytes(combination)
    activation = activation_bytes(combination)
    workspace = workspace_bytes(combination)
    cache = combination.limits.max_batch_size * request_kv_bytes(combination)
    gpu = combination.gpu.memory_bytes
    return MemoryEstimate(
        weights_bytes=weights,
        kv_cache_bytes_per_token=kv_bytes_per_token(combination),
        kv_cache_bytes=cache,
        activation_bytes=activation,
        workspace_bytes=workspace,
        runtime_bytes=combination.assumptions.runtime_bytes,
        decoder_bytes=decoder_bytes(combination),
        total_bytes=weights + cache + activation + workspace,
        gpu_bytes=gpu,
        kv_pool_bytes=combination.assumptions.kv_pool(gpu - weights - activation - workspace),
        largest_batch_that_fits=largest_batch(combination),
    )


def weights_bytes(combination: EngineSpec) -> int:
    """Matrices in the precision with their scales; embedding, head, router, norms and biases in the data type.

    [aiconfigurator] parameters x bytes / (tp x pp), here matrix by matrix, so that copied heads and scales count.
    TensorRT keeps one table for tied embeddings (share_embedding_table in builder.py), unless pp parts the two.
    """
    model, tp = combination.model, combination.tp
    layer = layer_vector_elements(model, tp) * combination.dtype_bytes
    for matrix in layer_matrices(model, tp):
        if matrix.is_quantised:
            layer += matrix.copies * combination.precision.matrix_bytes(matrix.outputs, matrix.inputs)
        else:
            layer += matrix.elements * combination.dtype_bytes
    tables = 1 if model.tied_embeddings or combination.pp > 1 else 2
    table_elements = tables * vocabulary_elements(model, tp) + model.hidden_size
    return combination.layers_on_gpu * layer + table_elements * combination.dtype_bytes


def kv_bytes_per_token(combination: EngineSpec) -> int:
    """[memory] 2 x layers x heads x head size x bytes: key and value, for the layers and heads on this GPU."""
    heads = combination.kv_heads_on_gpu * combination.model.head_dim
    return 2 * combination.layers_on_gpu * heads * combination.kv_value_bytes


def request_kv_bytes(combination: EngineSpec) -> int:
    """One request of max_seq_len tokens, in whole blocks."""
    blocks = divide_up(combination.limits.max_seq_len, TOKENS_PER_BLOCK)
    return blocks * TOKENS_PER_BLOCK * kv_bytes_per_token(combination)


def activation_bytes(combination: EngineSpec) -> int:
    """[aiconfigurator] bytes x max_num_tokens x heads x head size x a factor. It is set when the engine is built."""
    model = combination.model
    factors = _MOE_ACTIVATION_TENTHS if model.experts > 1 else _ACTIVATION_TENTHS
    width = combination.dtype_bytes * model.heads * model.head_dim
    wanted = width * combination.limits.max_num_tokens * _at_most(factors, combination.tp) // 10
    return max(_LEAST_ACTIVATION_BYTES, wanted)


def workspace_bytes(combination: EngineSpec) -> int:
    """NCCL, the runtime, and the decoder's buffers."""
    return _nccl_bytes(combination) + combination.assumptions.runtime_bytes + decoder_bytes(combination)


def decoder_bytes(combination: EngineSpec) -> int:
    return DECODER_BYTES + combination.limits.max_batch_size * _decoder_request_bytes(combination)


def largest_batch(combination: EngineSpec) -> int:
    """The most requests of max_seq_len tokens that fit together.

    batch x request <= share x (free - batch x decoder), solved for the batch.
    """
    assumptions = combination.assumptions
    workspace = _nccl_bytes(combination) + assumptions.runtime_bytes + DECODER_BYTES
    fixed = weights_bytes(combination) + activation_bytes(combination) + workspace
    free = max(0, combination.gpu.memory_bytes - fixed)
    request, decoder = request_kv_bytes(combination), _decoder_request_bytes(combination)
    parts, whole = assumptions.kv_ratio
    return parts * free // (whole * request + parts * decoder)


def _nccl_bytes(combination: EngineSpec) -> int:
    return _at_most(_NCCL_BYTES, combination.world_size)


def _decoder_request_bytes(combination: EngineSpec) -> int:
    return combination.model.vocab_size * LOGIT_BYTES + combination.limits.max_seq_len * POSITION_BYTES


def _at_most(table: dict[int, int], gpus: int) -> int:
    """The entry of the largest listed number of GPUs that is not above `gpus`."""
    return table[max(number for number in table if number <= gpus)]
