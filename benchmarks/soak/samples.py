"""Samples memory, descriptors, threads and shared memory of the stack's processes."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks.soak.growth import Growth, Limit, find_growth
from launcher.local.stack import Stack

_MIB = 2**20
_SHARED_MEMORY = Path("/dev/shm")
# More than traffic varies, and less than a leak soon exceeds.
LIMITS = {
    "memory_mib": Limit(absolute=8.0, share=0.05),
    "fds": Limit(absolute=8.0),
    "threads": Limit(absolute=4.0),
    "shared_memory_mib": Limit(absolute=1.0),
}


@dataclass
class Samples:
    """Series by process and quantity; each has one value for each of `seconds`."""

    seconds: list[float] = field(default_factory=list)
    series: dict[str, dict[str, list[float]]] = field(default_factory=dict)  # process -> quantity -> values
    restarts: list[str] = field(default_factory=list)

    def growths(self) -> dict[str, dict[str, Growth]]:
        """Returns the growth of every series. Raises ValueError if there are too few samples."""
        return {
            process: {name: find_growth(self.seconds, values, LIMITS[name]) for name, values in quantities.items()}
            for process, quantities in self.series.items()
        }


class ResourceSampler:
    """Samples one running stack. Its processes are found once, so that the death of one is a finding."""

    def __init__(self, stack: Stack, grpc_port: int) -> None:
        self.samples = Samples()
        self._processes = _find_processes(stack)
        self._region_prefix = f"triton_completions_{grpc_port}_"
        self._started = time.monotonic()

    def sample(self) -> None:
        """Takes one sample of every quantity.

        Raises psutil.NoSuchProcess, and records it in `restarts`, if a process has died.
        """
        try:
            sample = {name: _sample_process(process) for name, process in self._processes.items()}
        except psutil.NoSuchProcess as error:
            self.samples.restarts.append(f"process {error.pid} ({error.name}) has died")
            raise
        sample["/dev/shm"] = {"shared_memory_mib": self._shared_memory_mib()}
        self.samples.seconds.append(time.monotonic() - self._started)
        for process, quantities in sample.items():
            for name, value in quantities.items():
                self.samples.series.setdefault(process, {}).setdefault(name, []).append(value)

    def _shared_memory_mib(self) -> float:
        return sum(map(_size_mib, _SHARED_MEMORY.glob(f"{self._region_prefix}*")))


def _size_mib(path: Path) -> float:
    """Returns the size of a file on disk; 0 if it has just been removed."""
    try:
        return path.stat().st_blocks * 512 / _MIB
    except FileNotFoundError:
        return 0.0


def _sample_process(process: psutil.Process) -> dict[str, float]:
    return {
        # Private memory only: shared pages of libraries vary with other processes of the machine.
        "memory_mib": process.memory_full_info().uss / _MIB,
        "fds": float(process.num_fds()),
        "threads": float(process.num_threads()),
    }


def _find_processes(stack: Stack) -> dict[str, psutil.Process]:
    if stack.triton is None or stack.frontend is None:
        raise RuntimeError("The stack is not running.")
    triton = psutil.Process(stack.triton.pid)
    processes = {"Triton": triton}
    front_end = psutil.Process(stack.frontend.pid)  # with several workers, their supervisor
    for process in (front_end, *front_end.children(), *triton.children(recursive=True)):
        processes[_name(process, processes)] = process
    return processes


def _name(process: psutil.Process, taken: dict[str, psutil.Process]) -> str:
    arguments = process.cmdline()
    name = process.name()
    if "frontend" in arguments or "frontend.worker_main" in arguments:
        name = "front end"
    elif any("cpu.engine.process" in argument for argument in arguments):
        name = "CPU engine"
    for argument in arguments:
        if argument.endswith("/1/model.py"):
            name = argument.split("/")[-3]
    count = sum(known.split(" #")[0] == name for known in taken)
    return f"{name} #{count + 1}" if count else name
