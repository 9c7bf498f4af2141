"""Disk and memory of this machine, asked before a build starts rather than found out in the middle of it."""

from __future__ import annotations

import shutil
from pathlib import Path

from build_engine.errors import EngineRefusedError

MIB = 1 << 20
# The weights, and for an int8 engine no more; the rest is the tokenizer and room for the file system.
DISK_PER_FP16_BYTE = 1.5
# The weights, the same packed for the kernels while the engine is tried, an f32 embedding, and the int8 copy.
MEMORY_PER_FP16_BYTE = 5
BASE_BYTES = 256 * MIB


def require_disk(directory: Path, fp16_bytes: int) -> None:
    """EngineRefusedError when the file system of `directory` (which exists) has too little room."""
    needed = int(fp16_bytes * DISK_PER_FP16_BYTE) + BASE_BYTES
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise EngineRefusedError(
            f"Not enough disk at {directory}: {free // MIB} MiB free, the build needs {needed // MIB} MiB. "
            "Free some, or choose another place with --output."
        )


def require_memory(fp16_bytes: int) -> None:
    """EngineRefusedError when the machine, or this container, has too little memory available."""
    needed = int(fp16_bytes * MEMORY_PER_FP16_BYTE) + BASE_BYTES
    available = available_memory_bytes()
    if available is not None and available < needed:
        raise EngineRefusedError(
            f"Not enough memory: {available // MIB} MiB available, the build needs {needed // MIB} MiB. "
            "Stop other programs, raise the container's limit, or build a smaller model."
        )


def available_memory_bytes() -> int | None:
    """What a new process could take, in bytes: the smaller of the kernel's and the cgroup's answer; None: unknown."""
    answers = [answer for answer in (_meminfo_available(), _cgroup_available()) if answer is not None]
    return min(answers, default=None)


def _meminfo_available() -> int | None:
    for line in _lines(Path("/proc/meminfo")):
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _cgroup_available() -> int | None:
    """cgroup v2 as a container sees it. Its page cache counts as used, so reclaimable files are added back."""
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
