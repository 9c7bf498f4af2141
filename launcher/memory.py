"""Reads how much memory a start may use: the machine's, or what the control group of this process has left.

A container's limit is that of its control group; /proc/meminfo, and so psutil, report the whole machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psutil

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUP = Path("/proc/self/cgroup")


@dataclass(frozen=True)
class AvailableMemory:
    """Memory that can be used, in bytes."""

    bytes: int
    limit_bytes: int | None = None  # of the control group that has the least left; None if the machine has less


def available_memory(cgroups: Path = _CGROUPS, own_cgroup: Path = _OWN_CGROUP) -> AvailableMemory:
    """Returns the smallest of what the machine and each enclosing control group have left."""
    machine = AvailableMemory(psutil.virtual_memory().available)
    return min([machine, *_groups(cgroups, own_cgroup)], key=lambda memory: memory.bytes)


def _groups(cgroups: Path, own_cgroup: Path) -> list[AvailableMemory]:
    found = []
    for folder, limit_name, usage_name, inactive_name in _folders(cgroups, own_cgroup):
        limit, usage = _number(folder / limit_name), _number(folder / usage_name)
        if limit is not None and usage is not None:
            # Usage counts the page cache, which the kernel drops before it ends a process.
            left = limit - usage + _statistic(folder / "memory.stat", inactive_name)
            found.append(AvailableMemory(max(0, left), limit))
    return found


def _folders(cgroups: Path, own_cgroup: Path) -> list[tuple[Path, str, str, str]]:
    """Returns this process's control group and those around it, with the names of their files: version 2, or 1.

    In a container the group's path may be the host's, which is not mounted; the mount's root is the container's group.
    """
    try:
        lines = own_cgroup.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    found = []
    for line in lines:
        _number, controllers, path = line.split(":", 2)
        if controllers == "":
            root, names = cgroups, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            root, names = cgroups / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        own = root / path.lstrip("/")
        found += [(folder, *names) for folder in (own, *own.parents) if folder == root or root in folder.parents]
    return found


def _number(path: Path) -> int | None:
    """Returns the number in a file; None without the file or a limit ("max")."""
    try:
        text = path.read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _statistic(path: Path, name: str) -> int:
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.split()[:1] == [name]), 0)
