"""Reads the headers of the safetensors files of a model directory: model.safetensors, or the shards of its index.

Headers alone, so a directory of any size is read in milliseconds. The format:
https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from build_engine.artifact.file_kinds import describe_failed_download
from build_engine.artifact.model_directory import read_json_object
from build_engine.errors import EngineRefusedError

SINGLE_NAME, INDEX_NAME = "model.safetensors", "model.safetensors.index.json"
_LENGTH_BYTES = 8  # of the header's length, little-endian
_MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors package
# safetensors/src/tensor.rs, `Dtype::bitsize`.
_BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "I8", "U8", "BOOL"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}


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

    @property
    def size_bytes(self) -> int:
        return -(-self.elements * _BITS[self.type_name] // 8)


def has_weights(model_dir: Path) -> bool:
    """Whether there is a safetensors file or an index, complete or not."""
    return any((model_dir / name).exists() for name in (SINGLE_NAME, INDEX_NAME))


def list_tensors(model_dir: Path) -> dict[str, StoredTensor]:
    """All tensors by name. Raises EngineRefusedError if a file is missing or damaged."""
    return {name: tensor for path in weight_files(model_dir) for name, tensor in _read_header(path).items()}


def weight_files(model_dir: Path) -> list[Path]:
    """Like transformers, prefers the single file, and ignores files that neither it nor the index names."""
    if (model_dir / SINGLE_NAME).is_file():
        return [model_dir / SINGLE_NAME]
    if not (model_dir / INDEX_NAME).is_file():
        raise EngineRefusedError(
            f"{model_dir} has neither {SINGLE_NAME} nor {INDEX_NAME}. Save the model in safetensors format first."
        )
    paths = [model_dir / name for name in sorted(set(read_weight_map(model_dir).values()))]
    if missing := [path.name for path in paths if not path.is_file()]:
        raise EngineRefusedError(f"{missing[0]} is missing ({len(missing)} of {len(paths)} shards). Download it.")
    return paths


def read_weight_map(model_dir: Path) -> dict[str, str]:
    """The file of each tensor, as the index lists them."""
    names = read_json_object(model_dir / INDEX_NAME).get("weight_map")
    if not isinstance(names, dict) or not names or not all(_is_plain(name) for name in names.values()):
        raise EngineRefusedError(f"{INDEX_NAME} does not list files of its own directory. Download it again.")
    return names


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
    if (type_name := entry["dtype"]) not in _BITS:
        raise EngineRefusedError(
            f"{path.name}: tensor {name} has the unknown type {type_name!r}. Download the file again."
        )
    tensor = StoredTensor(path, type_name, tuple(int(length) for length in entry["shape"]), start + begin)
    if min((begin, *tensor.shape)) < 0 or end - begin != tensor.size_bytes or start + end > size:
        raise _damaged(path, f"tensor {name} is at bytes {begin} to {end} of {size - start}")
    return tensor


def _damaged(path: Path, reason: str) -> EngineRefusedError:
    return EngineRefusedError(f"{path.name} is truncated or damaged ({reason}). Download it again.")
