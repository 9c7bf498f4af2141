"""Memory, open descriptors and restarts of the stack's processes, sampled by a thread."""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass, field
from typing import Protocol

import psutil

from benchmarks.processes import ENGINE, FRONT_END, TRITON, Process, memory_by_role, processes_by_role

_PERIOD_S = 1.0
_JOIN_TIMEOUT_S = 10.0


class Child(Protocol):
    """A process of the stack, which the launcher may restart under another id."""

    @property
    def pid(self) -> int | None:
        """The current process id; None while it is not running."""


class Watched(Protocol):
    """A stack, as far as it is watched."""

    @property
    def frontend(self) -> Child | None:
        """The front end."""

    @property
    def triton(self) -> Child | None:
        """Triton, whose descendants are the stubs, the engine and the processes of guides."""


@dataclass
class Resources:
    """What the stack's processes used in a period: peaks, and the last sample."""

    memory_mib: float = 0.0  # PSS of all processes together
    peak_memory_mib: float = 0.0
    descriptors: dict[str, int] = field(default_factory=dict)  # of front end and Triton
    peak_descriptors: dict[str, int] = field(default_factory=dict)
    processes: int = 0
    peak_processes: int = 0
    restarts: list[str] = field(default_factory=list)


class Watch:
    """Samples a stack once a second until it is closed.

    Ends the largest process if all of them together use more than `memory_limit_mib`: the machine is worth more than a
    measurement.
    """

    def __init__(self, stack: Watched, memory_limit_mib: float, *, period_s: float = _PERIOD_S) -> None:
        self._stack = stack
        self._memory_limit_mib = memory_limit_mib
        self._period_s = period_s
        self._resources = Resources()
        self._known: dict[str, int] = {}  # process ids by role, of those whose restart is a finding
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="siege-watch", daemon=True)
        self._sample()
        self._thread.start()

    def close(self) -> None:
        """Stops sampling."""
        self._closing.set()
        self._thread.join(_JOIN_TIMEOUT_S)

    def take(self) -> Resources:
        """Returns what was used since the last call, and begins a new period."""
        with self._lock:
            taken, last = self._resources, self._resources
            self._resources = Resources(
                memory_mib=last.memory_mib,
                peak_memory_mib=last.memory_mib,
                descriptors=dict(last.descriptors),
                peak_descriptors=dict(last.descriptors),
                processes=last.processes,
                peak_processes=last.processes,
            )
        return taken

    def _run(self) -> None:
        while not self._closing.wait(self._period_s):
            with contextlib.suppress(psutil.Error):  # a process has ended between two looks
                self._sample()

    def _sample(self) -> None:
        roots = [(role, pid) for role, pid in self._roots().items() if pid is not None]
        by_role = processes_by_role(roots)
        memory_mib = sum(memory_by_role(by_role).values())
        descriptors = {role: Process(pid).num_fds() for role, pid in roots}
        engine = by_role.get(ENGINE)
        main = {**dict(roots), **({ENGINE: engine[0].pid} if engine else {})}
        count = sum(map(len, by_role.values()))
        with self._lock:
            seen = self._resources
            seen.memory_mib, seen.descriptors, seen.processes = memory_mib, descriptors, count
            seen.peak_memory_mib = max(seen.peak_memory_mib, memory_mib)
            seen.peak_processes = max(seen.peak_processes, count)
            for role, number in descriptors.items():
                seen.peak_descriptors[role] = max(seen.peak_descriptors.get(role, 0), number)
            seen.restarts += [
                f"{role} was restarted" for role, pid in main.items() if self._known.get(role, pid) != pid
            ]
            self._known |= main
        if memory_mib > self._memory_limit_mib:
            self._end_largest([process for members in by_role.values() for process in members])

    def _roots(self) -> dict[str, int | None]:
        children = {FRONT_END: self._stack.frontend, TRITON: self._stack.triton}
        return {role: None if child is None else child.pid for role, child in children.items()}

    def _end_largest(self, processes: list[Process]) -> None:
        largest = max(processes, key=lambda process: process.memory_info().rss)
        with self._lock:
            self._resources.restarts.append(
                f"{largest.name()} was ended: the stack used more than {self._memory_limit_mib:,.0f} MiB"
            )
        largest.kill()
