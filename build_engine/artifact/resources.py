"""Checks disk space and memory before a build starts, so that it does not fail halfway."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Protocol

from build_engine.errors import EngineRefusedError

MIB = 1 << 20
# The weights, which are smaller in int8; the rest is for the tokenizer and the file system.
DISK_PER_FP16_BYTE = 1.5
# The weights, their copy packed for the kernels while the engine is tested, an f32 embedding, and the int8 copy.
MEMORY_PER_FP16_BYTE = 5
BASE_BYTES = 256 * MIB


class Resources(Protocol):
    """Free disk space and memory, in bytes."""

    def free_disk_bytes(self, directory: Path) -> int:
        """Of the file system of `directory`, which must exist."""
        ...

    def available_memory_bytes(self) -> int | None:
        """Memory that a new process could allocate. None: unknown."""
        ...


class LocalResources:
    """Of this machine, or of the container that this process runs in."""

    def free_disk_bytes(self, directory: Path) -> int:
        return shutil.disk_usage(directory).free

    def available_memory_bytes(self) -> int | None:
        figures = [figure for figure in (_meminfo_available(), _cgroup_available()) if figure is not None]
        return min(figures, default=None)


def require_resources(resources: Resources, directory: Path, fp16_bytes: int) -> None:
    """Raises EngineRefusedError if disk or memory are too small for a model of `fp16_bytes`."""
    needed = int(fp16_bytes * DISK_PER_FP16_BYTE) + BASE_BYTES
    free = resources.free_disk_bytes(directory)
    if free < needed:
        raise EngineRefusedError(
            f"Not enough disk space at {directory}: {free // MIB} MiB free, the build needs {needed // MIB} MiB. "
            "Free some, or choose another directory with --output."
        )
    needed = int(fp16_bytes * MEMORY_PER_FP16_BYTE) + BASE_BYTES
    available = resources.available_memory_bytes()
    if available is not None and available < needed:
        raise EngineRefusedError(
            f"Not enough memory: {available // MIB} MiB available, the build needs {needed // MIB} MiB. "
            "Stop other programs, raise the container's limit, or build a smaller model."
        )


def _meminfo_available() -> int | None:
    for line in _lines(Path("/proc/meminfo")):
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _cgroup_available() -> int | None:
    """cgroup v2 as seen in a container. The page cache counts as used, so reclaimable file pages are added."""
    root = Path("/sys/fs/cgroup")
    limit, used = _lines(root / "memory.max"), _lines(root / "memory.current")
    if not limit or not used or not limit[0].isdigit():
        return None
    stat = dict(line.split() for line in _lines(root / "memory.stat"))
    return int(limit[0]) - int(used[0]) + int(stat.get("inactive_file", 0))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").splitlines()
    except OSError:
        return []
