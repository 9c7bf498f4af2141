"""`model.safetensors` of a CPU engine: weights laid out as the graph takes them, and the numbers of the architecture.

build_engine writes it and the engine reads it. The only module that knows `safetensors`. Names of tensors:

    embedding.weight                              f16 [vocabulary, width]
    layers.N.attention_norm.weight                f32 [width]
    layers.N.qkv.weight                           [(heads + 2 kv_heads) * head_size, width]: query, key, value rows
    layers.N.query_norm.weight, .key_norm.weight  f32 [head_size], where the model has them
    layers.N.attention_output.weight              [width, heads * head_size]
    layers.N.mlp_norm.weight                      f32 [width]
    layers.N.gate_up.weight                       [2 * inner, width]: gate rows, then up rows
    layers.N.down.weight                          [width, inner]
    norm.weight                                   f32 [width]
    vocabulary.weight                             [vocabulary, width]; without it the embedding serves

Matrices are f16, or int8 with a NAME.scale beside them, f32 [rows, 1]. Any product may have a NAME.bias, f32 [rows].
Query and key rows are in the order of halves: dimension i of a head turns with dimension i + head_size / 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt
import orjson

WEIGHTS_NAME = "model.safetensors"
# What a copy of f16 weights in f32 takes in the engine: as a constant of the graph, and packed for the kernels.
F32_COPY_BYTES_PER_WEIGHT = 8
_SHAPE_KEY = "shape"  # of the file's metadata


class WeightsError(Exception):
    """The file can't be used; the message says why and how to mend it."""


@dataclass(frozen=True)
class ModelShape:
    """The numbers that make a graph out of tensors."""

    layers: int
    heads: int
    kv_heads: int
    head_size: int
    norm_epsilon: float
    rope_base: float


@dataclass(frozen=True)
class Weights:
    """A whole model."""

    shape: ModelShape
    tensors: Mapping[str, npt.NDArray[Any]]


def save_weights(path: Path, weights: Weights) -> None:
    """Write the file: the same weights give the same bytes."""
    from safetensors.numpy import save_file

    # One key only: the library writes several in the order of a hash table.
    metadata = {_SHAPE_KEY: orjson.dumps(asdict(weights.shape)).decode()}
    save_file(dict(weights.tensors), path, metadata=metadata)


def load_weights(engine_dir: Path) -> Weights:
    """Read the file of an engine directory. WeightsError when it is missing or not what build_engine writes."""
    from safetensors import SafetensorError, safe_open

    path = engine_dir / WEIGHTS_NAME
    if not path.is_file():
        raise WeightsError(
            f"{path} is missing; engines of earlier versions do not have it. Build the engine again with "
            "`python -m build_engine build`."
        )
    try:
        with safe_open(path, framework="numpy") as file:
            shape = ModelShape(**orjson.loads(file.metadata()[_SHAPE_KEY]))
            return Weights(shape, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 - not a dict
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise WeightsError(
            f"{path} can't be read as a model ({type(error).__name__}: {error}). Build the engine again with --force."
        ) from error
