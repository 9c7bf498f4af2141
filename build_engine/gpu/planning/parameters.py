"""Counts the matrix and vector elements of a model, complete (`tp=1`) or on one GPU of a tensor-parallel group.

Splitting follows tensorrt_llm/layers/attention.py, mlp.py and moe.py: query, key, value, gate and up by outputs, the
attention output and down by inputs; key and value heads are replicated if there are fewer than GPUs; every expert is on
every GPU, split like an MLP; router and norms are replicated; embedding and head are split by vocabulary (the plan sets
`use_parallel_embedding`). Sizes that don't divide are rounded up; `constraints` reports them.
"""

from __future__ import annotations

from dataclasses import dataclass

from build_engine.gpu.planning.model_config import ModelConfig


@dataclass(frozen=True)
class Matrix:
    name: str
    outputs: int
    inputs: int
    copies: int = 1  # one per expert
    is_quantized: bool = True

    @property
    def elements(self) -> int:
        return self.outputs * self.inputs * self.copies


def kv_heads_on_gpu(model: ModelConfig, tp: int) -> int:
    """Key and value heads on one GPU: at least one, since they are replicated if there are fewer heads than GPUs."""
    return divide_up(model.kv_heads, tp)


def layer_matrices(model: ModelConfig, tp: int = 1) -> list[Matrix]:
    """The matrices of one layer on one GPU."""
    query = divide_up(model.heads, tp) * model.head_dim
    kv = kv_heads_on_gpu(model, tp) * model.head_dim
    inner = divide_up(model.intermediate_size, tp)
    hidden = model.hidden_size
    matrices = [
        Matrix("qkv", query + 2 * kv, hidden),
        Matrix("attention output", hidden, query),
        Matrix("gate and up", 2 * inner, hidden, model.experts),
        Matrix("down", hidden, inner, model.experts),
    ]
    if model.experts > 1:
        matrices.append(Matrix("router", model.experts, hidden, is_quantized=False))
    return matrices


def layer_vector_elements(model: ModelConfig, tp: int = 1) -> int:
    """Norms (two, plus the query and key norms of Qwen3) and biases of one layer on one GPU."""
    elements = 2 * model.hidden_size
    if model.qk_norm:
        elements += 2 * model.head_dim
    if model.qkv_bias:
        elements += (divide_up(model.heads, tp) + 2 * kv_heads_on_gpu(model, tp)) * model.head_dim
    if model.output_bias:
        elements += model.hidden_size
    if model.mlp_bias:
        elements += model.experts * (2 * divide_up(model.intermediate_size, tp) + model.hidden_size)
    return elements


def vocabulary_elements(model: ModelConfig, tp: int = 1) -> int:
    """Elements of the embedding on one GPU; a separate output head has the same number."""
    return divide_up(model.vocab_size, tp) * model.hidden_size


def count_parameters(model: ModelConfig) -> int:
    """All parameters of the model as model cards count them: tied embeddings once."""
    layer = sum(matrix.elements for matrix in layer_matrices(model)) + layer_vector_elements(model)
    tables = 1 if model.tied_embeddings else 2
    return model.layers * layer + tables * vocabulary_elements(model) + model.hidden_size


def divide_up(value: int, divisor: int) -> int:
    return -(-value // divisor)
