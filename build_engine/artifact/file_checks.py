"""Compares the files of an engine directory with its manifest: names, sizes and sha256."""

from __future__ import annotations

from pathlib import Path

from build_engine.artifact.checks import Check
from llm_pipeline.engine_files.manifest import MANIFEST_NAME, EngineManifest, sha256_of


def check_files(engine_dir: Path, manifest: EngineManifest) -> list[Check]:
    """One check per file of the manifest, and a failed one per file that the manifest does not list."""
    checks = [_check_file(engine_dir, name, manifest) for name in sorted(manifest.files)]
    expected = {*manifest.files, MANIFEST_NAME}
    present = sorted(str(path.relative_to(engine_dir)) for path in engine_dir.rglob("*") if not path.is_dir())
    return checks + [Check.of(name, False, "is not part of the engine") for name in present if name not in expected]


def file_problems(engine_dir: Path, manifest: EngineManifest) -> list[str]:
    """One line per damaged, missing or extra file. Empty if the directory is exactly as it was built."""
    return [f"{check.name} {check.detail}" for check in check_files(engine_dir, manifest) if check.failed]


def _check_file(engine_dir: Path, name: str, manifest: EngineManifest) -> Check:
    path, expected = engine_dir / name, manifest.files[name]
    if not path.is_file():
        return Check.of(name, False, "is missing")
    if (size := path.stat().st_size) != expected.size_bytes:
        return Check.of(name, False, f"has {size} bytes instead of {expected.size_bytes}")
    if sha256_of(path) != expected.sha256:
        return Check.of(name, False, "has been changed: its sha256 differs from the manifest")
    return Check.of(name, True, f"{expected.size_bytes} bytes, sha256 {expected.sha256[:12]}")
