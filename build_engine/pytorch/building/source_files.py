"""Finds the files of a model directory that an engine directory takes over, and refuses a directory that is incomplete.

TensorRT-LLM loads every `*.safetensors` file of the directory that it is given, except those with "consolidated" in
their names (HfWeightLoader.load_weights, tensorrt_llm/_torch/models/checkpoints/hf/weight_loader.py @149b2213). An
engine directory therefore has the weights that the index lists and no others. It has no Python files: nothing executes
a model's own code.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from build_engine.artifact.file_kinds import describe_failed_download
from build_engine.artifact.model_directory import CONFIG_NAME, read_json_object
from build_engine.errors import EngineRefusedError
from llm_pipeline.engine_files.manifest import MANIFEST_NAME, TOKENIZER_NAME

BUILD_NAME = "build.json"  # for people: the plan
_SINGLE_NAME, _INDEX_NAME = "model.safetensors", "model.safetensors.index.json"
_OTHER_PATTERNS = ("*.json", "*.jinja", "*.model", "*.tiktoken", "merges.txt", "vocab.txt")
_WRITTEN_HERE = (MANIFEST_NAME, BUILD_NAME, TOKENIZER_NAME)
_PICKLED_PATTERNS = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_SAVE_AS_SAFETENSORS = (
    "Save them as safetensors with transformers: AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW_DIR)."
)


@dataclass(frozen=True)
class SourceFiles:
    """File names of a model directory, without tokenizer.json, which an engine directory has as its own copy."""

    directory: Path  # absolute; links of the directory itself are resolved
    weights: tuple[str, ...]
    others: tuple[str, ...]  # configurations, the index, and further files of the tokenizer

    @property
    def paths(self) -> dict[str, Path]:
        return {name: self.directory / name for name in sorted((*self.weights, *self.others))}

    @property
    def size_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.paths.values())


def find_source_files(model_dir: Path) -> SourceFiles:
    """The files that TensorRT-LLM's PyTorch runtime reads.

    Raises EngineRefusedError if one is missing, a link to nothing, or a Git LFS pointer. Weights are not opened.
    """
    directory = model_dir.resolve()
    if not directory.is_dir():
        raise EngineRefusedError(f"No model directory {model_dir}. Name a Hugging Face directory with --model.")
    if (directory / MANIFEST_NAME).exists():
        raise EngineRefusedError(
            f"{model_dir} is an engine directory. Name the model that it was built from with --model."
        )
    for name in (CONFIG_NAME, TOKENIZER_NAME):
        if os.path.lexists(directory / name):
            _require_content(directory / name)
    if not (directory / CONFIG_NAME).is_file():
        raise EngineRefusedError(f"{model_dir} has no {CONFIG_NAME}. Name a Hugging Face directory with --model.")
    _require_fast_tokenizer(directory)
    found = {path.name for pattern in _OTHER_PATTERNS for path in directory.glob(pattern)}
    others = sorted(
        name for name in found if name not in _WRITTEN_HERE and not name.endswith((".bin.index.json", _INDEX_NAME))
    )
    weights, index = _find_weights(directory)
    files = SourceFiles(directory, weights, (*others, *index))
    for path in files.paths.values():
        _require_content(path)
    return files


def _find_weights(directory: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the weights, and of their index if they are in several files.

    Like transformers, prefers the single file, and ignores files that neither it nor the index names.
    """
    if os.path.lexists(directory / _SINGLE_NAME):
        return (_SINGLE_NAME,), ()
    if not os.path.lexists(directory / _INDEX_NAME):
        raise EngineRefusedError(_reason_without_index(directory))
    _require_content(directory / _INDEX_NAME)
    listed = read_json_object(directory / _INDEX_NAME).get("weight_map")
    if not isinstance(listed, dict) or not listed or not all(_is_plain(name) for name in listed.values()):
        raise EngineRefusedError(
            f"{_INDEX_NAME} of {directory} does not list safetensors files of that directory. Download it again."
        )
    names = sorted(set(listed.values()))
    if missing := [name for name in names if not os.path.lexists(directory / name)]:
        raise EngineRefusedError(
            f"{directory} lacks {len(missing)} of the {len(names)} files that {_INDEX_NAME} lists, such as "
            f"{missing[0]}. Download the missing files."
        )
    return tuple(names), (_INDEX_NAME,)


def _reason_without_index(directory: Path) -> str:
    if loose := sorted(path.name for path in directory.glob("*.safetensors")):
        return f"{directory} has {loose[0]}, but neither {_SINGLE_NAME} nor {_INDEX_NAME}. Download the index too."
    if pickled := sorted(path.name for pattern in _PICKLED_PATTERNS for path in directory.glob(pattern)):
        return (
            f"{directory} has pickled weights only ({pickled[0]}), which can execute code when they are loaded. "
            f"{_SAVE_AS_SAFETENSORS}"
        )
    return f"{directory} has neither {_SINGLE_NAME} nor {_INDEX_NAME}. Download the weights in safetensors format."


def _is_plain(name: object) -> bool:
    """Whether this is the name of a safetensors file in the same directory: an index is untrusted input."""
    return isinstance(name, str) and name == Path(name).name and name.endswith(".safetensors") and "\0" not in name


def _require_content(path: Path) -> None:
    """Raises EngineRefusedError if the path is no readable file, or what a failed download left in place of one."""
    if not path.is_file():
        where = f"links to {os.readlink(path)}, which does not exist" if path.is_symlink() else "is not a file"
        raise EngineRefusedError(f"{path} {where}. Download the model again, or mount the directory that it links to.")
    if kind := describe_failed_download(path):
        raise EngineRefusedError(f"{path} {kind}")


def _require_fast_tokenizer(directory: Path) -> None:
    if (directory / TOKENIZER_NAME).is_file():
        return
    other = next(
        (
            name
            for name in ("tokenizer.model", "tekken.json", "tiktoken.model", "vocab.json")
            if (directory / name).exists()
        ),
        None,
    )
    found = f"only {other}" if other else "no tokenizer"
    raise EngineRefusedError(
        f"{directory} has {found}, and this server reads {TOKENIZER_NAME}. Save it with transformers: "
        "AutoTokenizer.from_pretrained(DIR, use_fast=True).save_pretrained(DIR)."
    )
