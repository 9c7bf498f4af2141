"""Reads and writes `model.safetensors` of a CPU engine: weights in the graph's layout, and architecture parameters.

build_engine writes the file and the engine reads it. The only module that imports `safetensors`. Tensors:

    embedding.weight                              f16 [vocabulary, width]
    layers.N.attention_norm.weight                f32 [width]
    layers.N.qkv.weight                           [(heads + 2 kv_heads) * head_size, width]: query, key, value rows
    layers.N.query_norm.weight, .key_norm.weight  f32 [head_size], if the model has them
    layers.N.attention_post_norm.weight           f32 [width], if the output of attention is normalized
    layers.N.attention_output.weight              [width, heads * head_size]
    layers.N.mlp_norm.weight                      f32 [width]
    layers.N.gate_up.weight                       [2 * inner, width]: gate rows, then up rows
    layers.N.down.weight                          [width, inner]
    layers.N.mlp_post_norm.weight                 f32 [width], if the output of the MLP is normalized
    norm.weight                                   f32 [width]
    vocabulary.weight                             [vocabulary, width]; absent: the embedding is used
    rope.frequencies                              f32 [head_size / 2]; absent: the unscaled ones of rope_base
    local_rope.frequencies                        the same of layers with a window; absent: all layers use the former

Matrices are f16, or int8 with a NAME.scale, f32 [rows, 1]. Any matrix may have a NAME.bias, f32 [rows]. Query and key
rows are in half order: RoPE rotates dimension i of a head with dimension i + head_size / 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from enum import Enum
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


class Activation(str, Enum):
    """The activation of the gate in the MLP."""

    SILU = "silu"
    GELU_TANH = "gelu_tanh"  # the approximation with tanh


@dataclass(frozen=True)
class ModelShape:
    """Architecture parameters that the tensors' shapes do not give."""

    layers: int
    heads: int
    kv_heads: int
    head_size: int
    norm_epsilon: float
    rope_base: float
    rope_scale: float = 1.0  # factor of RoPE's cosines and sines, YaRN's attention factor; 1 for local_rope
    windows: tuple[int, ...] = ()  # for each layer, tokens that a token attends to, itself included; 0: all before it
    embedding_scale: float = 1.0
    attention_scale: float | None = None  # factor of the attention scores; None: 1 / sqrt(head_size)
    activation: Activation = Activation.SILU

    def window(self, layer: int) -> int:
        """Returns the sliding window of a layer in tokens; 0 if it has none."""
        return self.windows[layer] if self.windows else 0


@dataclass(frozen=True)
class Weights:
    """A complete model."""

    shape: ModelShape
    tensors: Mapping[str, npt.NDArray[Any]]


def save_weights(path: Path, weights: Weights) -> None:
    """Writes the file. Equal weights give equal bytes."""
    from safetensors.numpy import save_file

    # One key only: the library writes several in the order of a hash table.
    metadata = {_SHAPE_KEY: orjson.dumps(_shape_values(weights.shape)).decode()}
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
            shape = _parse_shape(orjson.loads(file.metadata()[_SHAPE_KEY]))
            return Weights(shape, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 - not a dict
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise WeightsError(
            f"{path} can't be read as a model ({type(error).__name__}: {error}). Build the engine again with --force."
        ) from error


def _shape_values(shape: ModelShape) -> dict[str, Any]:
    """Returns the parameters without those at their default, so that a new one changes no file that does not use it."""
    defaults = {field.name: field.default for field in fields(shape) if field.default is not MISSING}
    return {name: value for name, value in asdict(shape).items() if name not in defaults or value != defaults[name]}


def _parse_shape(values: dict[str, Any]) -> ModelShape:
    """Raises TypeError or ValueError for unknown, missing or invalid parameters."""
    shape = ModelShape(
        **values
        | {
            "windows": tuple(values.get("windows", ())),
            "activation": Activation(values.get("activation", Activation.SILU)),
        }
    )
    if shape.windows and len(shape.windows) != shape.layers:
        raise ValueError(f"{len(shape.windows)} windows for {shape.layers} layers")
    return shape
