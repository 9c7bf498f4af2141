"""Finds the processes below another one, and ends them. Reads /proc only: the GPU image does not contain psutil.

A process is known by its id and its start, so that a later process with the same id is not taken for it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

_PROC = Path("/proc")
_POLL_PERIOD_S = 0.05
_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


class ProcessId(NamedTuple):
    """One process, also after its end."""

    pid: int
    started: int  # clock ticks since boot


def adopt_orphans() -> None:
    """Makes this process the parent of every process below it whose own parent dies, whatever its session is.

    It must `reap` them, as process 1 would.
    """
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def child_pids(parent_pid: int) -> Iterator[int]:
    """Yields the children of all threads of a process; nothing if it has ended."""
    for children in (_PROC / str(parent_pid) / "task").glob("*/children"):
        with suppress(OSError):  # the thread has just ended
            yield from map(int, children.read_text().split())


def command_line(pid: int) -> list[str]:
    """Returns the arguments of a process; an empty list if it has ended or is a zombie."""
    try:
        return [part.decode(errors="replace") for part in (_PROC / str(pid) / "cmdline").read_bytes().split(b"\0")]
    except OSError:
        return []


def process_name(pid: int) -> str:
    """Returns the name of a process, cut to 15 characters by the kernel; an empty string if it has ended."""
    try:
        return (_PROC / str(pid) / "comm").read_text().rstrip("\n")
    except OSError:
        return ""


def descendants(pid: int) -> list[ProcessId]:
    """Returns the living processes below a process, parents first, without zombies."""
    found: list[ProcessId] = []
    for child in child_pids(pid):
        identity = identify(child)
        if identity is not None:
            found.append(identity)
        found += descendants(child)  # also of a zombie, whose threads may still have children
    return found


def identify(pid: int) -> ProcessId | None:
    """Returns a living process; None if there is none with this id, or only its zombie."""
    try:
        # The name is in parentheses and may contain any character, so the fields are counted from its end.
        fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    state, started = fields[0], int(fields[19])
    return None if state in "ZX" else ProcessId(pid, started)


def is_alive(process: ProcessId) -> bool:
    """Whether the process runs, or is stopped; zombies are dead."""
    return identify(process.pid) == process


def kill_and_wait(processes: Iterable[ProcessId], timeout_s: float) -> list[ProcessId]:
    """Kills processes and waits until they are gone. Returns those that are still there after `timeout_s`.

    A killed process may stay for a while: the driver frees its GPU memory first. Reaps those that are children of the
    calling process, or become it because their parent is among them.
    """
    processes = list(processes)
    left = [process for process in processes if is_alive(process)]
    for process in left:
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
    deadline = time.monotonic() + timeout_s
    while left and time.monotonic() < deadline:
        left = [process for process in left if is_alive(process)]
        if left:
            time.sleep(_POLL_PERIOD_S)
    for process in processes:  # only now: those that ended last are zombies, too
        reap(process.pid)
    return left


def reap(pid: int) -> None:
    """Removes the zombie of a child; does nothing for other processes."""
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
