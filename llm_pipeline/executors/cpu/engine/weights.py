"""Reads and writes `model.safetensors` of a CPU engine: weights in the graph's layout, and architecture parameters.

build_engine writes the file and the engine reads it. The only module that imports `safetensors`. Tensors:

    embedding.weight                              f16 [vocabulary, width]
    layers.N.attention_norm.weight                f32 [width]
    layers.N.qkv.weight                           [(heads + 2 kv_heads) * head_size, width]: query, key, value rows
    layers.N.query_norm.weight, .key_norm.weight  f32 [head_size], if the model has them
    layers.N.attention_output.weight              [width, heads * head_size]
    layers.N.mlp_norm.weight                      f32 [width]
    layers.N.gate_up.weight                       [2 * inner, width]: gate rows, then up rows
    layers.N.down.weight                          [width, inner]
    norm.weight                                   f32 [width]
    vocabulary.weight                             [vocabulary, width]; absent: the embedding is used

Matrices are f16, or int8 with a NAME.scale, f32 [rows, 1]. Any matrix may have a NAME.bias, f32 [rows]. Query and key
rows are in half order: RoPE rotates dimension i of a head with dimension i + head_size / 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt
import orjson

WEIGHTS_NAME = "model.safetensors"
# Memory for an f32 copy of an f16 weight in the engine: a constant of the graph, and a packed one for the kernels.
F32_COPY_BYTES_PER_WEIGHT = 8
_SHAPE_KEY = "shape"  # of the file's metadata


class WeightsError(Exception):
    """The file can't be used; the message contains the reason and the fix."""


@dataclass(frozen=True)
class ModelShape:
    """Architecture parameters that the tensors' shapes do not give."""

    layers: int
    heads: int
    kv_heads: int
    head_size: int
    norm_epsilon: float
    rope_base: float


@dataclass(frozen=True)
class Weights:
    """A complete model."""

    shape: ModelShape
    tensors: Mapping[str, npt.NDArray[Any]]


def save_weights(path: Path, weights: Weights) -> None:
    """Writes the file. Equal weights give equal bytes."""
    from safetensors.numpy import save_file

    # One key only: the library writes several in the order of a hash table.
    metadata = {_SHAPE_KEY: orjson.dumps(asdict(weights.shape)).decode()}
    save_file(dict(weights.tensors), path, metadata=metadata)


def load_weights(engine_dir: Path) -> Weights:
    """Reads the file of an engine directory. Raises WeightsError if it is missing or not written by build_engine."""
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
