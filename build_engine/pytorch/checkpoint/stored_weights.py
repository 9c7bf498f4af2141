"""The weights of a model directory, as its safetensors headers describe them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from build_engine.artifact.safetensors_headers import (
    INDEX_NAME,
    SINGLE_NAME,
    StoredTensor,
    has_weights,
    list_tensors,
    read_weight_map,
)
from build_engine.errors import EngineRefusedError

# TensorRT-LLM loads every *.safetensors of the directory except these, and not only those of the index:
# HfWeightLoader in tensorrt_llm/_torch/models/checkpoints/hf/weight_loader.py.
_SKIPPED = "consolidated"


@dataclass(frozen=True)
class StoredWeights:
    tensors: dict[str, StoredTensor]

    @property
    def size_bytes(self) -> int:
        """Of all tensors, without headers."""
        return sum(tensor.size_bytes for tensor in self.tensors.values())

    @property
    def files(self) -> list[Path]:
        return sorted({tensor.path for tensor in self.tensors.values()})

    @property
    def main_type(self) -> str:
        """The type that most bytes are stored in, as safetensors spells it."""
        sizes = Counter[str]()
        for tensor in self.tensors.values():
            sizes[tensor.type_name] += tensor.size_bytes
        return sizes.most_common(1)[0][0]


def read_stored_weights(model_dir: Path) -> StoredWeights | None:
    """None if the directory has no safetensors files.

    Raises EngineRefusedError if a file is missing or damaged, if the index contradicts the files, or if there are
    further files that TensorRT-LLM would load too.
    """
    if not has_weights(model_dir):
        return None
    tensors = list_tensors(model_dir)
    if not tensors:
        raise EngineRefusedError(f"The weights in {model_dir} have no tensors. Download them again.")
    used = {tensor.path.name for tensor in tensors.values()}
    if SINGLE_NAME not in used:
        _require_index(model_dir, tensors)
    extra = sorted(
        path.name for path in model_dir.glob("*.safetensors") if path.name not in used and _SKIPPED not in path.name
    )
    if extra:
        raise EngineRefusedError(
            f"{model_dir} has {extra[0]} ({len(extra)} such files), which is not part of the model's weights, but "
            "TensorRT-LLM loads every *.safetensors of the directory. Move it elsewhere."
        )
    return StoredWeights(tensors)


def _require_index(model_dir: Path, tensors: dict[str, StoredTensor]) -> None:
    """Raises EngineRefusedError unless the index lists exactly the tensors of the shards, each in its file."""
    weight_map = read_weight_map(model_dir)
    for name, file in weight_map.items():
        if name not in tensors or tensors[name].path.name != file:
            raise EngineRefusedError(
                f"{INDEX_NAME} lists tensor {name} in {file}, which does not have it. Download the model again."
            )
    if unlisted := sorted(tensors.keys() - weight_map.keys()):
        raise EngineRefusedError(
            f"{tensors[unlisted[0]].path.name} has tensor {unlisted[0]}, which {INDEX_NAME} does not list. "
            "Download the model again."
        )
