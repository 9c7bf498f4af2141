"""Facts about the machine, and how busy it was with other work during a measurement."""

from __future__ import annotations

import platform
import resource
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import psutil

_MAX_LOAD_PROCESSES = 8
_PACKAGES = (
    "triton-completions",
    "nvidia-pytriton",
    "tritonclient",
    "grpcio",
    "uvicorn",
    "uvloop",
    "fastapi",
    "openvino",
    "tokenizers",
    "numpy",
)


@dataclass(frozen=True)
class MachineFacts:
    """The machine that a run was made on."""

    cpu: str
    cores: int
    memory_gib: float
    system: str
    python: str
    gpu: str | None = None  # as nvidia-smi names it
    note: str | None = None  # by the person who ran it


@dataclass(frozen=True)
class CpuTotals:
    """CPU time of all cores together, in seconds since boot."""

    busy_s: float
    idle_s: float
    steal_s: float  # taken by the hypervisor while this machine had work

    @property
    def total_s(self) -> float:
        """Busy, idle and stolen time."""
        return self.busy_s + self.idle_s + self.steal_s


@dataclass(frozen=True)
class Noise:
    """Other work during one measurement. Shares are of the CPU time of all cores."""

    load_before: float  # 1 minute load average
    load_after: float
    steal_share: float
    other_share: float  # used by processes that do not take part


def machine_facts(note: str | None = None) -> MachineFacts:
    """Returns the facts about this machine, and the note of the person who runs the benchmark."""
    return MachineFacts(
        cpu=_cpu_name(),
        cores=psutil.cpu_count() or 1,
        memory_gib=round(psutil.virtual_memory().total / 2**30, 1),
        system=f"{platform.system()} {platform.release()}, {platform.machine()}",
        python=platform.python_version(),
        gpu=gpu_names(),
        note=note,
    )


def gpu_names(command: Sequence[str] = ("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")) -> str | None:
    """Returns the names of the GPUs, such as "2 x NVIDIA H200"; None if the command is missing or lists none."""
    counts = Counter((_output(command) or "").splitlines())
    return ", ".join(f"{count} x {name.strip()}" for name, count in counts.items() if name.strip()) or None


def load_processes(cores: int) -> int:
    """Returns the number of load processes for a machine: the client must not be what limits a load."""
    return min(max(cores // 2, 1), _MAX_LOAD_PROCESSES)


def allow_open_files() -> None:
    """Raises this process's limit of open files as far as it may: thousands of streams have a connection each."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def versions() -> dict[str, str]:
    """Returns the versions of the packages that take part, if installed."""
    installed = {package.name.lower(): package.version for package in metadata.distributions() if package.name}
    return {name: installed[name] for name in _PACKAGES if name in installed}


def git_commit(repository: Path) -> str | None:
    """Returns the checked-out commit, with the suffix "+changes" if files differ; None outside of git."""
    commit = _git(repository, "rev-parse", "HEAD")
    if commit is None:
        return None
    return f"{commit}+changes" if _git(repository, "status", "--porcelain", "--untracked-files=no") else commit


def cpu_totals() -> CpuTotals:
    """Returns the CPU time so far."""
    times = psutil.cpu_times()
    steal_s = float(getattr(times, "steal", 0.0))
    idle_s = float(times.idle + getattr(times, "iowait", 0.0))
    busy_s = float(times.user + times.system + times.nice + getattr(times, "irq", 0.0) + getattr(times, "softirq", 0.0))
    return CpuTotals(busy_s, idle_s, steal_s)


def load_average() -> float:
    """Returns the load average of the last minute."""
    return round(psutil.getloadavg()[0], 2)


def noise_between(before: CpuTotals, after: CpuTotals, ours_s: float, loads: tuple[float, float]) -> Noise:
    """Returns the noise between two totals. `ours_s` is the CPU time of all processes that take part.

    CPU time is counted in ticks of 10 ms, so short loads are inexact.
    """
    total_s = max(after.total_s - before.total_s, 1e-9)
    other_s = max(after.busy_s - before.busy_s - ours_s, 0.0)
    return Noise(
        load_before=loads[0],
        load_after=loads[1],
        steal_share=round((after.steal_s - before.steal_s) / total_s, 4),
        other_share=round(other_s / total_s, 4),
    )


def _cpu_name() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _git(repository: Path, *arguments: str) -> str | None:
    return _output(("git", *arguments), repository)


def _output(command: Sequence[str], folder: Path | None = None) -> str | None:
    """Returns what a program writes; None if it is missing, fails, or takes too long."""
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
