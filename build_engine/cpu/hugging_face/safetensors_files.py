"""Reads the safetensors files of a model directory: model.safetensors, or the shards that its index lists.

With numpy alone, because the safetensors package returns bfloat16 only as a torch tensor. The format:
https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from build_engine.artifact.file_kinds import describe_failed_download
from build_engine.artifact.model_directory import read_json_object
from build_engine.errors import EngineRefusedError

_SINGLE_NAME, _INDEX_NAME = "model.safetensors", "model.safetensors.index.json"
_LENGTH_BYTES = 8  # of the header's length, little-endian
_MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors package
_BFLOAT16 = "BF16"
_TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", _BFLOAT16: "<u2"}  # bfloat16 is the upper half of a float32


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a file."""

    path: Path
    type_name: str
    shape: tuple[int, ...]
    offset: int  # in the file, in bytes

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


def list_tensors(model_dir: Path) -> dict[str, StoredTensor]:
    """All tensors by name.

    Raises EngineRefusedError if a file is missing or damaged, or has weights of another type.
    """
    return {name: tensor for path in _files(model_dir) for name, tensor in _read_header(path).items()}


def read_tensor(tensor: StoredTensor) -> npt.NDArray[np.float32]:
    """The values, float32, in the tensor's shape."""
    if not tensor.elements:  # can't be mapped
        return np.zeros(tensor.shape, np.float32)
    stored = np.memmap(tensor.path, _TYPES[tensor.type_name], "r", tensor.offset, (tensor.elements,))
    if tensor.type_name == _BFLOAT16:
        return (stored.astype(np.uint32) << 16).view(np.float32).reshape(tensor.shape)
    with np.errstate(over="ignore"):  # of float64: infinity is refused like all that does not fit into float16
        return stored.astype(np.float32).reshape(tensor.shape)


def _files(model_dir: Path) -> list[Path]:
    """Like transformers, prefers the single file, and ignores files that neither it nor the index names."""
    if (model_dir / _SINGLE_NAME).is_file():
        return [model_dir / _SINGLE_NAME]
    if not (model_dir / _INDEX_NAME).is_file():
        raise EngineRefusedError(
            f"{model_dir} has neither {_SINGLE_NAME} nor {_INDEX_NAME}. Save the model in safetensors format first."
        )
    names = read_json_object(model_dir / _INDEX_NAME).get("weight_map")
    if not isinstance(names, dict) or not names or not all(_is_plain(name) for name in names.values()):
        raise EngineRefusedError(f"{_INDEX_NAME} does not list files of its own directory. Download it again.")
    paths = [model_dir / name for name in sorted(set(names.values()))]
    if missing := [path.name for path in paths if not path.is_file()]:
        raise EngineRefusedError(f"{missing[0]} is missing ({len(missing)} of {len(paths)} shards). Download it.")
    return paths


def _is_plain(name: object) -> bool:
    """Whether this is the name of a file in the same directory: an index is untrusted input."""
    return isinstance(name, str) and name == Path(name).name and name not in ("", "..")


def _read_header(path: Path) -> dict[str, StoredTensor]:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        start = _LENGTH_BYTES + length
        if not 0 < length <= _MAX_HEADER_BYTES or start > size:
            if kind := describe_failed_download(path):
                raise EngineRefusedError(f"{path} {kind}")
            raise _damaged(path, f"its header has {length} bytes")
        try:
            header = json.loads(file.read(length))
            entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
            return {name: _describe(path, name, entry, start, size) for name, entry in entries.items()}
        except (ValueError, AttributeError, KeyError, TypeError) as error:
            raise _damaged(path, f"invalid header, {type(error).__name__}: {error}") from error


def _describe(path: Path, name: str, entry: dict[str, Any], start: int, size: int) -> StoredTensor:
    begin, end = entry["data_offsets"]
    if (type_name := entry["dtype"]) not in _TYPES:
        raise EngineRefusedError(
            f"{path.name}: tensor {name} has the type {type_name}. Use weights in {', '.join(_TYPES)}."
        )
    tensor = StoredTensor(path, type_name, tuple(int(length) for length in entry["shape"]), start + begin)
    expected = tensor.elements * np.dtype(_TYPES[type_name]).itemsize
    if min((begin, *tensor.shape)) < 0 or end - begin != expected or start + end > size:
        raise _damaged(path, f"tensor {name} is at bytes {begin} to {end} of {size - start}")
    return tensor


def _damaged(path: Path, reason: str) -> EngineRefusedError:
    return EngineRefusedError(f"{path.name} is truncated or damaged ({reason}). Download it again.")
