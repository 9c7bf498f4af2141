"""CPU time and memory of all processes that take part, by role: client, front end, Triton, stubs, engine, baseline."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import PurePath

import psutil
from psutil import NoSuchProcess, Process

FRONT_END = "front end"
TRITON = "Triton"
FRONT_END_AND_TRITON = "front end with Triton"  # in one process
ENGINE = "engine"
CLIENT = "load client"
__all__ = [
    "CLIENT",
    "ENGINE",
    "FRONT_END",
    "FRONT_END_AND_TRITON",
    "STUBS",
    "TRITON",
    "NoSuchProcess",
    "Process",
    "child_named",
    "cpu_by_role",
    "memory_by_role",
    "processes_by_role",
    "role_of",
]
_STUB = "triton_python_backend_stub"
_STAGES = ("preprocess", "decode", "postprocess")
STUBS = tuple(f"{stage} stub" for stage in _STAGES)


def role_of(command_line: list[str], parent_role: str) -> str:
    """Returns the role of a process by its command line; other children have the role of their parent."""
    if not command_line:
        return parent_role
    if PurePath(command_line[0]).name == _STUB:
        stages = [stage for stage in _STAGES if any(f"/{stage}/" in argument for argument in command_line)]
        return f"{stages[0]} stub" if stages else parent_role
    if any("cpu.engine" in argument for argument in command_line):
        return ENGINE
    return parent_role


def child_named(parent: int, name: str) -> int | None:
    """Returns the process id of the first child that has this file or module on its command line; None without one."""
    for child in Process(parent).children():
        if any(PurePath(argument).name == name for argument in child.cmdline()):
            return child.pid
    return None


def processes_by_role(roots: Iterable[tuple[str, int]]) -> dict[str, list[Process]]:
    """Returns the processes below `roots` (role and process id) by their own roles."""
    by_role: dict[str, list[Process]] = defaultdict(list)
    for role, pid in roots:
        _collect(Process(pid), role, by_role)
    return dict(by_role)


def _collect(process: Process, parent_role: str, by_role: dict[str, list[Process]]) -> None:
    try:
        role = role_of(process.cmdline(), parent_role)
        children = process.children()
    except psutil.NoSuchProcess:
        return
    by_role[role].append(process)
    for child in children:
        _collect(child, role, by_role)


def cpu_by_role(processes: Mapping[str, Iterable[Process]]) -> dict[str, float]:
    """Returns the CPU seconds (user and system) of each role since its processes started."""
    return {role: sum(_cpu_s(process) for process in members) for role, members in processes.items()}


def memory_by_role(processes: Mapping[str, Iterable[Process]]) -> dict[str, float]:
    """Returns the current memory of each role in MiB, shared pages counted once (PSS)."""
    return {role: round(sum(_memory_mib(process) for process in members), 1) for role, members in processes.items()}


def _cpu_s(process: Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system)


def _memory_mib(process: Process) -> float:
    try:
        return float(process.memory_full_info().pss) / 2**20
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0.0
