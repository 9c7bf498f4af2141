"""Validates calibration data, which quantization scales are computed from, and describes it for the manifest.

Rules of get_calib_dataloader and quantize_and_export in tensorrt_llm/quantization/quantize_by_modelopt.py (read in a
stored 1.x version): two names are downloaded; any other value must be a directory that Hugging Face `datasets` loads,
with a train split and a text column.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from build_engine.errors import EngineRefusedError
from build_engine.gpu.planning.spec import EngineSpec
from build_engine.targets.precisions import Precision
from llm_pipeline.engine_files.manifest import Calibration, sha256_of

DEFAULT_CALIBRATION = "cnn_dailymail"  # upstream's
DOWNLOADED_DATASETS = (DEFAULT_CALIBRATION, "pileval")
TEXT_COLUMN = "text"
MAX_TOKENS = 512  # per sample
SEED = 1234
_SAMPLES, _AWQ_SAMPLES = 512, 32  # upstream uses at most 32 for AWQ
_IMAGE_DATASETS = ("scienceqa", "science_qa")  # upstream loads a path that contains one, in any case, as images
_HOW = (
    f"Use a directory with a train.jsonl, each line an object with {TEXT_COLUMN!r}, "
    f"or {' or '.join(DOWNLOADED_DATASETS)}."
)


def calibration_samples(precision: Precision) -> int:
    return _AWQ_SAMPLES if "awq" in precision.qformat else _SAMPLES


def require_calibration(source: str) -> None:
    """Raises EngineRefusedError for data that the quantizer would reject after minutes of loading the model."""
    if any(name in source.lower() for name in _IMAGE_DATASETS):
        raise EngineRefusedError(f"TensorRT-LLM loads calibration data at {source!r} as images. Rename the directory.")
    if source == DOWNLOADED_DATASETS[1] or DEFAULT_CALIBRATION in source:
        return
    directory = Path(source)
    if not directory.is_dir():
        raise EngineRefusedError(f"No calibration data at {source!r}. {_HOW}")
    if not any(path.is_file() for path in directory.rglob("*")):
        raise EngineRefusedError(f"The calibration directory {source!r} is empty. {_HOW}")
    for path in sorted(directory.rglob("*.jsonl")):
        _require_text(path)


def _require_text(path: Path) -> None:
    """Checks the first line only."""
    with path.open("rb") as file:
        first = file.readline()
    try:
        row = json.loads(first)
    except ValueError:
        row = None
    if not isinstance(row, dict) or not isinstance(row.get(TEXT_COLUMN), str):
        raise EngineRefusedError(f"The first line of {path} has no {TEXT_COLUMN!r}. {_HOW}")


def describe_calibration(spec: EngineSpec, source: str) -> Calibration | None:
    """The manifest's entry; None if nothing is calibrated. Hashes a local directory."""
    if not spec.is_calibrated:
        return None
    directory = Path(source)
    is_local = directory.is_dir()
    return Calibration(
        source=directory.resolve().name if is_local else source,
        samples=calibration_samples(spec.precision),
        tokens=MAX_TOKENS,
        seed=SEED,
        sha256=_hash_directory(directory) if is_local else None,
    )


def _hash_directory(directory: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(directory).as_posix()} {sha256_of(path)}\n".encode())
    return digest.hexdigest()
