"""Writes the files of a model directory into an engine directory: as absolute symbolic links, or as copies."""

from __future__ import annotations

from pathlib import Path

from build_engine.artifact.hashing import copy_files, hash_files
from build_engine.artifact.resources import MIB, Resources
from build_engine.errors import EngineRefusedError
from build_engine.progress import BuildProgress
from build_engine.pytorch.building.source_files import SourceFiles
from llm_pipeline.engine_files.manifest import EngineFile

_OTHER_BYTES = 64 * MIB  # for the tokenizer, the manifest and the file system


def hash_source(files: SourceFiles, progress: BuildProgress) -> dict[str, EngineFile]:
    """Digest and size of each file. Reads every byte of the model once."""
    with progress.step(f"hash {files.directory.name}", files.size_bytes) as advance:
        return hash_files(files.paths, advance)


def link_files(files: SourceFiles, building: Path) -> None:
    for name, path in files.paths.items():
        (building / name).symlink_to(path)


def copy_model(files: SourceFiles, expected: dict[str, EngineFile], building: Path, progress: BuildProgress) -> None:
    """Raises EngineRefusedError if a file has changed since it was hashed."""
    with progress.step(f"copy {files.directory.name}", files.size_bytes) as advance:
        copied = copy_files(files.paths, building, advance)
    if changed := [name for name, file in copied.items() if file != expected[name]]:
        raise EngineRefusedError(
            f"{files.directory / changed[0]} changed while it was copied. Wait until the download is complete."
        )


def require_disk(files: SourceFiles, directory: Path, resources: Resources) -> None:
    """Raises EngineRefusedError if a copy does not fit on the disk of `directory`, which may not exist yet."""
    existing = next(path for path in (directory, *directory.parents) if path.exists())
    free, needed = resources.free_disk_bytes(existing), files.size_bytes + _OTHER_BYTES
    if free < needed:
        raise EngineRefusedError(
            f"Not enough disk space at {existing}: {free // MIB} MiB free, a copy of the model needs {needed // MIB} "
            "MiB. Free some, choose another --root, or build without --copy."
        )
