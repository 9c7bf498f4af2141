"""The text that a quantiser takes its scales from: what upstream accepts, and what is written down of it.

Rules of get_calib_dataloader and quantize_and_export in tensorrt_llm/quantization/quantize_by_modelopt.py (read in a
stored version of the 1.x line): two names are fetched from the network; every other value must be a directory that
Hugging Face `datasets` loads, with a train split and a text column.
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
FETCHED = (DEFAULT_CALIBRATION, "pileval")
TEXT_COLUMN = "text"
TOKENS = 512
SEED = 1234
_SAMPLES, _AWQ_SAMPLES = 512, 32  # upstream cuts what it is asked for to 32 for AWQ
_NOT_TEXT = ("scienceqa", "science_qa")  # in any spelling: upstream takes such a path for a set of pictures
_HOW = f"Name a directory with a train.jsonl, each line an object with {TEXT_COLUMN!r}, or {' or '.join(FETCHED)}."


def calibration_samples(precision: Precision) -> int:
    return _AWQ_SAMPLES if "awq" in precision.qformat else _SAMPLES


def require_calibration(source: str) -> None:
    """EngineRefusedError for what the quantiser would refuse, after minutes of loading the model."""
    if any(word in source.lower() for word in _NOT_TEXT):
        raise EngineRefusedError(f"Upstream takes calibration data at {source!r} for pictures. Rename the directory.")
    if source == FETCHED[1] or DEFAULT_CALIBRATION in source:
        return
    directory = Path(source)
    if not directory.is_dir():
        raise EngineRefusedError(f"There is no calibration data at {source!r}. {_HOW}")
    if not any(path.is_file() for path in directory.rglob("*")):
        raise EngineRefusedError(f"The calibration directory {source!r} is empty. {_HOW}")
    for path in sorted(directory.rglob("*.jsonl")):
        _require_text(path)


def _require_text(path: Path) -> None:
    """The first line stands for the others."""
    with path.open("rb") as file:
        first = file.readline()
    try:
        row = json.loads(first)
    except ValueError:
        row = None
    if not isinstance(row, dict) or not isinstance(row.get(TEXT_COLUMN), str):
        raise EngineRefusedError(f"The first line of {path} has no {TEXT_COLUMN!r}. {_HOW}")


def describe_calibration(combination: EngineSpec, source: str) -> Calibration | None:
    """What goes into the manifest; None when nothing is calibrated. Reads the directory where there is one."""
    if not combination.is_calibrated:
        return None
    directory = Path(source)
    is_local = directory.is_dir()
    return Calibration(
        source=directory.resolve().name if is_local else source,
        samples=calibration_samples(combination.precision),
        tokens=TOKENS,
        seed=SEED,
        sha256=_hash_directory(directory) if is_local else None,
    )


def _hash_directory(directory: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(directory).as_posix()} {sha256_of(path)}\n".encode())
    return digest.hexdigest()
