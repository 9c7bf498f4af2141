"""The engine or model directory that is served: its runtime, and the number of ranks that compute for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llm_pipeline.engine_files.manifest import MANIFEST_NAME, EngineManifest, ManifestError
from llm_pipeline.engine_files.trtllm_config import EngineConfig


class LaunchError(Exception):
    """Engine, GPUs and launch mode are incompatible, or a program is missing. The message names the remedy."""


@dataclass(frozen=True)
class ServedEngine:
    """`world_size` is the number of GPUs, each with a rank of its own."""

    world_size: int
    runtime: Literal["engine", "pytorch"] = "engine"


def read_engine(engine_dir: Path) -> ServedEngine:
    """Reads a compiled engine, or a model directory for the PyTorch runtime, which has a manifest.

    Raises LaunchError if its files are incomplete or contradict each other.
    """
    try:
        manifest = EngineManifest.load(engine_dir) if (engine_dir / MANIFEST_NAME).is_file() else None
        if manifest is not None and manifest.pytorch is not None:
            return ServedEngine(manifest.pytorch.tp * manifest.pytorch.pp, "pytorch")
        world_size = EngineConfig.load(engine_dir).world_size
    except ManifestError as error:
        raise LaunchError(f"ENGINE_DIR: {error}") from error
    expected = {f"rank{rank}.engine" for rank in range(world_size)}
    present = {file.name for file in engine_dir.glob("rank*.engine")}
    if present != expected:
        raise LaunchError(
            f"The engine in {engine_dir} is for {world_size} GPUs: rank0 to rank{world_size - 1}.engine. "
            f"Missing: {_listed(expected - present)}; unexpected: {_listed(present - expected)}. Build it again."
        )
    return ServedEngine(world_size)


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names)) or "none"
