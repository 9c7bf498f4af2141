"""Compares the files of an engine directory with its manifest: names, sizes and sha256. Links are followed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from build_engine.artifact.checks import Check
from build_engine.artifact.hashing import hash_files
from build_engine.progress import Advance
from llm_pipeline.engine_files.manifest import MANIFEST_NAME, EngineFile, EngineManifest


def check_files(
    engine_dir: Path,
    manifest: EngineManifest,
    advance: Advance = lambda amount: None,
    known: Mapping[str, EngineFile] | None = None,
) -> list[Check]:
    """One check per file of the manifest, and a failed one per file that the manifest does not list.

    `advance` receives the bytes read. A file of another size is not read, nor is one of `known`: files that the caller
    has hashed just now.
    """
    known = known or {}
    checks = {name: _check_presence(engine_dir, name, expected) for name, expected in manifest.files.items()}
    readable = {name: engine_dir / name for name, check in checks.items() if check is None}
    found = {**known, **hash_files({name: path for name, path in readable.items() if name not in known}, advance)}
    listed = [checks[name] or _check_hash(name, found[name], manifest.files[name]) for name in sorted(checks)]
    expected_names = {*manifest.files, MANIFEST_NAME}
    present = sorted(str(path.relative_to(engine_dir)) for path in engine_dir.rglob("*") if not path.is_dir())
    extra = [name for name in present if name not in expected_names]
    return listed + [Check.of(name, False, "is not part of the engine") for name in extra]


def file_problems(
    engine_dir: Path,
    manifest: EngineManifest,
    advance: Advance = lambda amount: None,
    known: Mapping[str, EngineFile] | None = None,
) -> list[str]:
    """One line per damaged, missing or extra file. Empty if the directory is exactly as it was built."""
    checks = check_files(engine_dir, manifest, advance, known)
    return [f"{check.name} {check.detail}" for check in checks if check.failed]


def size_of(manifest: EngineManifest) -> int:
    """Bytes of all files, those behind links included."""
    return sum(file.size_bytes for file in manifest.files.values())


def _check_presence(engine_dir: Path, name: str, expected: EngineFile) -> Check | None:
    """A failed check of a file that is missing or has another size; None if it can be hashed."""
    path = engine_dir / name
    if not path.is_file():
        where = f": it links to {os.readlink(path)}, which is not there" if path.is_symlink() else ""
        return Check.of(name, False, f"is missing{where}")
    if (size := path.stat().st_size) != expected.size_bytes:
        return Check.of(name, False, f"has {size} bytes instead of {expected.size_bytes}")
    return None


def _check_hash(name: str, found: EngineFile, expected: EngineFile) -> Check:
    if found.sha256 != expected.sha256:
        return Check.of(name, False, "has been changed: its sha256 differs from the manifest")
    return Check.of(name, True, f"{expected.size_bytes} bytes, sha256 {expected.sha256[:12]}")
