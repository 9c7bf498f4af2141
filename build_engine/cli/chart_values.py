"""The values of the Helm chart (deploy/chart) that follow from an engine's manifest."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from build_engine.artifact.file_checks import size_of
from llm_pipeline.engine_files.manifest import MANIFEST_NAME, EngineManifest, sha256_of

_GIB = 1 << 30


def chart_values(engine_dir: Path, manifest: EngineManifest) -> dict[str, Any]:
    """Returns them as helm reads them: the runtime, the model's name, the engine's size and hash, and its GPUs.

    Where the engine is stored is not among them.
    """
    values: dict[str, Any] = {
        "runtime": manifest.runtime,
        "model": {"name": manifest.model_name, "maxModelLen": manifest.limits.context_length},
        "engine": {
            "id": engine_dir.resolve().name,
            "sizeGiB": math.ceil(size_of(manifest) / _GIB * 10) / 10,
            "manifestSha256": sha256_of(engine_dir / MANIFEST_NAME),
        },
    }
    build = manifest.gpu or manifest.pytorch
    if build is not None:
        values["engine"]["gpus"] = build.tp * build.pp
        values["gpu"] = {"computeCapability": f"{build.sm // 10}.{build.sm % 10}"}
    return values
