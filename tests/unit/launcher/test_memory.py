"""The memory that a start may use: the machine's, or what is left of a container's limit (cgroups 1 and 2)."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from launcher.memory import AvailableMemory, available_memory

MIB = 2**20


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=8000 * MIB))


def group(folder: Path, **files: str) -> None:
    """Writes the files of a control group; double underscores are dots."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(f"{text}\n")


def own(tmp_path: Path, line: str) -> Path:
    path = tmp_path / "own"
    path.write_text(f"{line}\n")
    return path


def test_without_control_groups_the_machine_counts(tmp_path: Path) -> None:
    assert available_memory(tmp_path / "nothing", tmp_path / "nothing") == AvailableMemory(8000 * MIB)


def test_limit_of_a_container_counts(tmp_path: Path) -> None:
    """In a container, the group is the root of its own namespace."""
    group(tmp_path / "cgroup", memory__max=str(2048 * MIB), memory__current=str(500 * MIB))
    found = available_memory(tmp_path / "cgroup", own(tmp_path, "0::/"))
    assert found == AvailableMemory(1548 * MIB, 2048 * MIB)


def test_page_cache_counts_as_available(tmp_path: Path) -> None:
    """The kernel drops it first: a container that has just copied its packages is not full."""
    statistics = f"anon 1\ninactive_file {400 * MIB}\nactive_file 7"
    group(tmp_path / "cgroup", memory__max=str(2048 * MIB), memory__current=str(500 * MIB), memory__stat=statistics)
    assert available_memory(tmp_path / "cgroup", own(tmp_path, "0::/")).bytes == 1948 * MIB


def test_smallest_enclosing_group_counts(tmp_path: Path) -> None:
    root = tmp_path / "cgroup"
    group(root / "slice" / "unit", memory__max="max", memory__current="0")
    group(root / "slice", memory__max=str(1000 * MIB), memory__current=str(10 * MIB))
    assert available_memory(root, own(tmp_path, "0::/slice/unit")) == AvailableMemory(990 * MIB, 1000 * MIB)


def test_group_of_the_host_that_is_not_mounted_leaves_the_root(tmp_path: Path) -> None:
    """docker without a cgroup namespace: /proc has the host's path, and /sys the container's files."""
    group(tmp_path / "cgroup", memory__max=str(2048 * MIB), memory__current="0")
    found = available_memory(tmp_path / "cgroup", own(tmp_path, "0::/system.slice/docker-1.scope"))
    assert found.bytes == 2048 * MIB


def test_version_1_counts(tmp_path: Path) -> None:
    files = {
        "memory__limit_in_bytes": str(3000 * MIB),
        "memory__usage_in_bytes": str(1000 * MIB),
        "memory__stat": f"total_inactive_file {200 * MIB}",
    }
    group(tmp_path / "cgroup" / "memory" / "docker", **files)
    found = available_memory(tmp_path / "cgroup", own(tmp_path, "7:cpu,cpuacct:/docker\n5:memory:/docker"))
    assert found == AvailableMemory(2200 * MIB, 3000 * MIB)


def test_version_1_without_a_limit_leaves_the_machine(tmp_path: Path) -> None:
    """Its "unlimited" is a number near 2**63."""
    group(tmp_path / "cgroup" / "memory", memory__limit_in_bytes="9223372036854771712", memory__usage_in_bytes="1")
    assert available_memory(tmp_path / "cgroup", own(tmp_path, "5:memory:/")) == AvailableMemory(8000 * MIB)


def test_full_group_has_nothing_left(tmp_path: Path) -> None:
    group(tmp_path / "cgroup", memory__max="1000", memory__current="2000")
    assert available_memory(tmp_path / "cgroup", own(tmp_path, "0::/")).bytes == 0
