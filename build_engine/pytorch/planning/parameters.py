"""Counts the matrices and vectors of a decoder, complete or on one GPU.

Splitting follows tensorrt_llm/_torch/modules (NVIDIA/TensorRT-LLM@b35ac1b6): matrices in front of an activation by
outputs, those behind it by inputs; key and value heads are replicated if there are fewer than GPUs; the two compressing
matrices of latent attention, the latent projections of experts (modeling_nemotron_h.py @00620eb0), routers and norms
are on every GPU. Experts: `ep` groups of GPUs share them out, and the GPUs of a group split each one (mapping.py:
moe_tp_size x moe_ep_size = tp_size).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from build_engine.gpu.planning.parameters import divide_up
from build_engine.pytorch.checkpoint.decoder import (
    Attention,
    Decoder,
    DeltaNet,
    Experts,
    FeedForward,
    LatentAttention,
    Layer,
    Mamba2,
    Mixer,
    Mlp,
)


class Part(Enum):
    """How a matrix may be quantized."""

    PLAIN = "plain"  # never: routers, convolutions
    LINEAR = "linear"
    EXPERT = "expert"


@dataclass(frozen=True)
class Split:
    """The GPUs that share each layer."""

    tp: int = 1
    ep: int = 1  # groups that share out the experts; divides tp

    @property
    def expert_tp(self) -> int:
        """GPUs that split one expert."""
        return max(1, self.tp // self.ep)


@dataclass(frozen=True)
class Matrix:
    name: str
    outputs: int
    inputs: int
    part: Part = Part.LINEAR
    copies: int = 1  # one per expert

    @property
    def elements(self) -> int:
        return self.outputs * self.inputs * self.copies


def layer_matrices(layer: Layer, hidden_size: int, split: Split) -> list[Matrix]:
    """The matrices of one layer on one GPU."""
    found: list[Matrix] = []
    if layer.mixer is not None:
        found += _mixer_matrices(layer.mixer, hidden_size, split.tp)
    if layer.feed_forward is not None:
        found += _feed_forward_matrices(layer.feed_forward, hidden_size, split)
    return found


def layer_vector_elements(layer: Layer, decoder: Decoder, split: Split) -> int:
    """Norms, biases and other vectors of one layer on one GPU."""
    hidden = decoder.hidden_size
    elements = layer.norms * decoder.norm_vectors * hidden
    if layer.mixer is not None:
        elements += sum(_mixer_vectors(layer.mixer, hidden, split.tp))
    if layer.feed_forward is not None:
        elements += sum(_feed_forward_vectors(layer.feed_forward, hidden, split))
    return elements


def vocabulary_elements(decoder: Decoder, tp: int = 1) -> int:
    """Elements of the embedding on one GPU; a separate output head has the same number."""
    return divide_up(decoder.vocab_size, tp) * decoder.hidden_size


def count_parameters(decoder: Decoder) -> int:
    """All parameters as model cards count them: tied embeddings once, without other parts such as vision."""
    whole = Split()
    layers = sum(
        sum(matrix.elements for matrix in layer_matrices(layer, decoder.hidden_size, whole))
        + layer_vector_elements(layer, decoder, whole)
        for layer in decoder.layers
    )
    tables = 1 if decoder.tied_embeddings else 2
    return layers + tables * vocabulary_elements(decoder) + decoder.norm_vectors * decoder.hidden_size


def absorbed_elements(layer: Layer, tp: int) -> int:
    """Elements of `k_b_proj_trans`, which upstream computes from kv_b_proj and keeps beside it (modules/attention.py).

    0 for layers without latent attention.
    """
    mixer = layer.mixer
    if not isinstance(mixer, LatentAttention):
        return 0
    return divide_up(mixer.heads, tp) * mixer.kv_rank * mixer.nope_dim


def _mixer_matrices(mixer: Mixer, hidden: int, tp: int) -> Iterator[Matrix]:
    if isinstance(mixer, Attention):
        query = divide_up(mixer.heads, tp) * mixer.head_dim
        kv = divide_up(mixer.kv_heads, tp) * mixer.head_dim
        yield Matrix("qkv", query * (2 if mixer.has_gate else 1) + 2 * kv, hidden)
        yield Matrix("attention output", hidden, query)
    elif isinstance(mixer, LatentAttention):
        yield from _latent_matrices(mixer, hidden, tp)
    elif isinstance(mixer, DeltaNet):
        value = mixer.value_heads * mixer.value_dim
        yield Matrix("qkvz", divide_up(mixer.convolved + value, tp), hidden)
        yield Matrix("ba", divide_up(2 * mixer.value_heads, tp), hidden, Part.PLAIN)
        yield Matrix("convolution", divide_up(mixer.convolved, tp), mixer.kernel, Part.PLAIN)
        yield Matrix("linear attention output", hidden, divide_up(value, tp))
    else:
        inputs = mixer.inner + mixer.convolved + mixer.heads
        yield Matrix("mamba input", divide_up(inputs, tp), hidden)
        yield Matrix("convolution", divide_up(mixer.convolved, tp), mixer.kernel, Part.PLAIN)
        yield Matrix("mamba output", hidden, divide_up(mixer.inner, tp))


def _latent_matrices(mixer: LatentAttention, hidden: int, tp: int) -> Iterator[Matrix]:
    heads = divide_up(mixer.heads, tp)
    query = heads * (mixer.nope_dim + mixer.rope_dim)
    if mixer.query_rank is None:
        yield Matrix("query", query, hidden)
    else:
        yield Matrix("compressed query", mixer.query_rank, hidden)
        yield Matrix("query", query, mixer.query_rank)
    yield Matrix("compressed key and value", mixer.kv_rank + mixer.rope_dim, hidden)
    yield Matrix("key and value", heads * (mixer.nope_dim + mixer.value_dim), mixer.kv_rank)
    yield Matrix("attention output", hidden, heads * mixer.value_dim)


def _feed_forward_matrices(part: FeedForward, hidden: int, split: Split) -> Iterator[Matrix]:
    matrices_in = 2 if part.has_gate else 1
    if isinstance(part, Mlp):
        inner = divide_up(part.inner, split.tp)
        yield Matrix("gate and up", matrices_in * inner, hidden)
        yield Matrix("down", hidden, inner)
        return
    experts = divide_up(part.count, split.ep)
    inner = divide_up(part.inner, split.expert_tp)
    width = part.latent or hidden
    yield Matrix("router", part.count, hidden, Part.PLAIN)
    if part.latent is not None:
        yield Matrix("projection to latent", part.latent, hidden)
        yield Matrix("projection from latent", hidden, part.latent)
    yield Matrix("experts' gate and up", matrices_in * inner, width, Part.EXPERT, experts)
    yield Matrix("experts' down", width, inner, Part.EXPERT, experts)
    if part.shared_inner:
        shared = divide_up(part.shared_inner, split.tp)
        yield Matrix("shared gate and up", matrices_in * shared, hidden)
        yield Matrix("shared down", hidden, shared)


def _mixer_vectors(mixer: Mixer, hidden: int, tp: int) -> Iterator[int]:
    if isinstance(mixer, Attention):
        heads, kv_heads = divide_up(mixer.heads, tp), divide_up(mixer.kv_heads, tp)
        if mixer.has_qk_norm:
            yield 2 * mixer.head_dim
        if mixer.has_qkv_bias:
            yield (heads + 2 * kv_heads) * mixer.head_dim
        if mixer.has_output_bias:
            yield hidden
        if mixer.has_sinks:
            yield heads
    elif isinstance(mixer, LatentAttention):
        yield (mixer.query_rank or 0) + mixer.kv_rank  # norms
    elif isinstance(mixer, DeltaNet):
        yield 2 * divide_up(mixer.value_heads, tp) + mixer.value_dim  # A, dt bias, norm
    else:
        yield from _mamba_vectors(mixer, hidden, tp)


def _mamba_vectors(mixer: Mamba2, hidden: int, tp: int) -> Iterator[int]:
    yield 3 * divide_up(mixer.heads, tp) + divide_up(mixer.inner, tp)  # A, D, dt bias, norm
    if mixer.has_conv_bias:
        yield divide_up(mixer.convolved, tp)
    if mixer.has_bias:
        yield divide_up(mixer.inner + mixer.convolved + mixer.heads, tp) + hidden


def _feed_forward_vectors(part: FeedForward, hidden: int, split: Split) -> Iterator[int]:
    matrices_in = 2 if part.has_gate else 1
    if isinstance(part, Mlp):
        if part.has_bias:
            yield matrices_in * divide_up(part.inner, split.tp) + hidden
        return
    yield from _expert_vectors(part, hidden, split, matrices_in)


def _expert_vectors(part: Experts, hidden: int, split: Split, matrices_in: int) -> Iterator[int]:
    if part.has_bias:
        yield part.count  # the router's
        yield divide_up(part.count, split.ep) * (matrices_in * divide_up(part.inner, split.expert_tp) + hidden)
    if part.has_correction_bias:
        yield part.count
    if part.has_shared_gate:
        yield hidden
