"""The result of a build, for every target."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from llm_pipeline.engine_files.manifest import EngineManifest


@dataclass(frozen=True)
class BuildResult:
    engine_dir: Path
    manifest: EngineManifest
    reused: bool  # a valid engine already existed; nothing was written
