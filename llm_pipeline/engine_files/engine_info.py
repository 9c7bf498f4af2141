"""What identifies the engine of a running model: the labels of its build info in metrics."""

from __future__ import annotations

import hashlib

from llm_pipeline.engine_files.manifest import EngineManifest


def engine_info(manifest: EngineManifest, executor: str) -> dict[str, str]:
    """Returns labels: `executor`, `engine_id`, and of an engine for GPUs `tensorrt_llm` and `sm`.

    `engine_id` is the start of a hash over the names and hashes of the engine's files: equal for copies of an engine,
    whatever their directory is called.
    """
    info = {"executor": executor, "engine_id": engine_id(manifest)}
    build = manifest.gpu or manifest.pytorch
    if build is not None:
        info |= {"tensorrt_llm": build.tensorrt_llm, "sm": str(build.sm)}
    return info


def engine_id(manifest: EngineManifest) -> str:
    """Returns 12 hex digits that identify the content of an engine directory."""
    digest = hashlib.sha256()
    for name in sorted(manifest.files):
        digest.update(f"{manifest.files[name].sha256} {name}\n".encode())
    return digest.hexdigest()[:12]
