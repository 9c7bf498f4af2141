"""Reads the values of safetensors files, with numpy alone: the safetensors package returns bfloat16 only as torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from build_engine.artifact.safetensors_headers import StoredTensor
from build_engine.artifact.safetensors_headers import list_tensors as list_all_tensors
from build_engine.errors import EngineRefusedError

_BFLOAT16 = "BF16"
_TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", _BFLOAT16: "<u2"}  # bfloat16 is the upper half of a float32


def list_tensors(model_dir: Path) -> dict[str, StoredTensor]:
    """All tensors by name.

    Raises EngineRefusedError if a file is missing or damaged, or has weights of a type that can't be read here.
    """
    tensors = list_all_tensors(model_dir)
    for name, tensor in tensors.items():
        if tensor.type_name not in _TYPES:
            raise EngineRefusedError(
                f"{tensor.path.name}: tensor {name} has the type {tensor.type_name}. "
                f"Use weights in {', '.join(_TYPES)}."
            )
    return tensors


def read_tensor(tensor: StoredTensor) -> npt.NDArray[np.float32]:
    """The values, float32, in the tensor's shape."""
    if not tensor.elements:  # can't be mapped
        return np.zeros(tensor.shape, np.float32)
    stored = np.memmap(tensor.path, _TYPES[tensor.type_name], "r", tensor.offset, (tensor.elements,))
    if tensor.type_name == _BFLOAT16:
        return (stored.astype(np.uint32) << 16).view(np.float32).reshape(tensor.shape)
    with np.errstate(over="ignore"):  # of float64: infinity is refused like all that does not fit into float16
        return stored.astype(np.float32).reshape(tensor.shape)
