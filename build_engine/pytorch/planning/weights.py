"""Bytes of the weights on one GPU: from the safetensors headers, or computed from config.json if there are none.

The PyTorch runtime keeps the weights in the format on disk. The result is for the GPU with the most: of several
pipeline stages, the largest.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator

from build_engine.artifact.safetensors_headers import StoredTensor
from build_engine.gpu.planning.parameters import divide_up
from build_engine.pytorch.checkpoint.decoder import Attention, Decoder, Layer
from build_engine.pytorch.checkpoint.stored_weights import StoredWeights
from build_engine.pytorch.planning.formats import WeightFormat
from build_engine.pytorch.planning.parameters import (
    Matrix,
    Part,
    Split,
    absorbed_elements,
    layer_matrices,
    layer_vector_elements,
    vocabulary_elements,
)

_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")
# Parts besides the decoder. Every GPU has them, as far as the sources were read.
_OTHER_MODEL = re.compile(r"(?:^|\.)(?:visual|vision_\w+|multi_modal_projector|mlp1|sound_\w+)\.")
_DRAFT_MODEL = re.compile(r"(?:^|\.)mtp\.")  # loaded for speculative decoding only
# Matrices that every GPU has completely (parameters.py).
_REPLICATED = re.compile(
    r"\.(?:q_a_proj|kv_a_proj_with_mqa|router|(?:mlp|mixer|block_sparse_moe)\.gate|shared_expert_gate|fc[12]_latent_proj)\."
)
_KEY_OR_VALUE = re.compile(r"\.[kv]_proj\.")
_EMBEDDING = re.compile(r"(?:^|\.)(?:embed_tokens|embeddings?|wte)\.weight$")
_HEAD = re.compile(r"(?:^|\.)(?:lm_head|output)\.weight")


def stage_layers(layers: tuple[Layer, ...], pp: int) -> list[tuple[Layer, ...]]:
    """The layers of each pipeline stage. Like torch.tensor_split, the first stages have the layers that remain."""
    size, rest = divmod(len(layers), pp)
    starts = [stage * size + min(stage, rest) for stage in range(pp + 1)]
    return [layers[start:end] for start, end in itertools.pairwise(starts)]


def computed_weights_bytes(decoder: Decoder, weights: WeightFormat, dtype_bytes: int, split: Split, pp: int) -> int:
    """Quantized matrices with their scales; embedding, head, router, norms and biases in the model's data type."""
    stages = stage_layers(decoder.layers, pp)
    sizes = [sum(_layer_bytes(layer, decoder, weights, dtype_bytes, split) for layer in layers) for layers in stages]
    table = vocabulary_elements(decoder, split.tp) * dtype_bytes
    sizes[0] += table
    if pp > 1 or not decoder.tied_embeddings:
        sizes[-1] += table
    sizes[-1] += decoder.norm_vectors * decoder.hidden_size * dtype_bytes
    return max(sizes)


def _layer_bytes(layer: Layer, decoder: Decoder, weights: WeightFormat, dtype_bytes: int, split: Split) -> int:
    matrices = layer_matrices(layer, decoder.hidden_size, split)
    size = sum(_matrix_bytes(matrix, weights, dtype_bytes) for matrix in matrices)
    size += layer_vector_elements(layer, decoder, split) * dtype_bytes
    return size + absorbed_elements(layer, split.tp) * _absorbed_bytes(weights, dtype_bytes)


def _matrix_bytes(matrix: Matrix, weights: WeightFormat, dtype_bytes: int) -> int:
    is_quantized = matrix.part is Part.EXPERT or (matrix.part is Part.LINEAR and not weights.experts_only)
    if is_quantized and weights.is_quantized:
        return matrix.copies * weights.matrix_bytes(matrix.outputs, matrix.inputs)
    return matrix.elements * dtype_bytes


def _absorbed_bytes(weights: WeightFormat, dtype_bytes: int) -> int:
    """FP8 with block scales, else the model's data type (modules/attention.py, mla_weight_dtype)."""
    return 1 if weights.name == "fp8-block" else dtype_bytes


def stored_weights_bytes(
    stored: StoredWeights, decoder: Decoder, weights: WeightFormat, dtype_bytes: int, split: Split, pp: int
) -> int:
    """From the headers. Layers beyond the decoder's are drafts for speculative decoding and are not loaded."""
    sizes = [0] * pp
    first_layers = _first_layers(len(decoder.layers), pp)
    for name, tensor in loaded_tensors(stored, decoder):
        size = _bytes_on_gpu(name, tensor, decoder, split)
        if _OTHER_MODEL.search(name):
            sizes = [other + size for other in sizes]
        elif match := _LAYER.search(name):
            sizes[_stage(int(match[1]), first_layers)] += size
        elif _EMBEDDING.search(name):
            sizes[0] += size
            if pp > 1 and decoder.tied_embeddings:
                sizes[-1] += size
        else:
            sizes[-1] += size
    for stage, layers in enumerate(stage_layers(decoder.layers, pp)):
        absorbed = sum(absorbed_elements(layer, split.tp) for layer in layers)
        sizes[stage] += absorbed * _absorbed_bytes(weights, dtype_bytes)
    return max(sizes)


def loaded_tensors(stored: StoredWeights, decoder: Decoder) -> Iterator[tuple[str, StoredTensor]]:
    """The tensors that are loaded without speculative decoding."""
    for name, tensor in stored.tensors.items():
        match = _LAYER.search(name)
        is_draft = match is not None and int(match[1]) >= len(decoder.layers) and not _OTHER_MODEL.search(name)
        is_copy = decoder.tied_embeddings and _HEAD.search(name) is not None
        if not is_draft and not is_copy and not _DRAFT_MODEL.search(name):
            yield name, tensor


def _bytes_on_gpu(name: str, tensor: StoredTensor, decoder: Decoder, split: Split) -> int:
    if len(tensor.shape) < 2 or _OTHER_MODEL.search(name) or _REPLICATED.search(name):
        return tensor.size_bytes
    if _KEY_OR_VALUE.search(name) and (kv_heads := _kv_heads(decoder.layers)):
        return divide_up(tensor.size_bytes * divide_up(kv_heads, split.tp), kv_heads)
    return divide_up(tensor.size_bytes, split.tp)


def _kv_heads(layers: Iterable[Layer]) -> int:
    """The fewest key/value heads of a layer with attention, which replicate first; 0 without such layers."""
    return min((layer.mixer.kv_heads for layer in layers if isinstance(layer.mixer, Attention)), default=0)


def _first_layers(count: int, pp: int) -> list[int]:
    size, rest = divmod(count, pp)
    return [stage * size + min(stage, rest) for stage in range(pp)]


def _stage(layer: int, first_layers: list[int]) -> int:
    return max(stage for stage, first in enumerate(first_layers) if first <= layer)
