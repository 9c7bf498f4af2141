"""Runs groups of scenarios: starts their servers, makes each load in turns, and measures its cost."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import orjson

from benchmarks.load.job import LoadProcess
from benchmarks.load.point import LoadPoint, make_job
from benchmarks.machine import CpuTotals, cpu_totals, load_average, noise_between
from benchmarks.processes import CLIENT, ENGINE, FRONT_END, Process, cpu_by_role, memory_by_role, processes_by_role
from benchmarks.report.figures import figures_of
from benchmarks.report.results import Run
from benchmarks.scenarios import Client, Group, Scenario, System
from benchmarks.systems.servers import Server, ServerError, our_stack

_PAUSE_S = 0.3  # lets a server clean up after the last load
_WARM_UP = LoadPoint(streams=4, max_tokens=8)


class Progress(Protocol):
    """Shows the progress of a run."""

    def show_step(self, text: str) -> None:
        """Shows the current step."""

    def run_finished(self, run: Run) -> None:
        """Counts one finished load."""


@dataclass(frozen=True)
class RunContext:
    """Directories of engine and logs, and how to start the servers that are not our stacks."""

    engine_dir: Path
    run_dir: Path
    starters: Mapping[str, Callable[[], AbstractContextManager[Server]]]  # by server name


def run_count(groups: Sequence[Group]) -> int:
    """Returns the number of loads."""
    return sum(
        point.repeats * len(scenario.systems)
        for group in groups
        for scenario in group.scenarios
        for point in scenario.points
    )


def run_group(group: Group, context: RunContext, progress: Progress) -> Iterator[Run]:
    """Starts the servers of the group, yields one run after another, and stops the servers at the end."""
    systems = {system for scenario in group.scenarios for system in scenario.systems}
    with ExitStack() as running:
        servers: dict[str, Server] = {}
        for name in sorted({system.server for system in systems}):
            progress.show_step(f"starting {name}")
            if server := _start(name, group, context, running):
                servers[name] = server
        measured = {
            system: running.enter_context(_measured_system(system, servers.get(system.server), context))
            for system in sorted(systems, key=lambda system: system.name)
        }
        for system, started in measured.items():
            progress.show_step(f"warming up {system.name}")
            started.run("warm-up", _WARM_UP, 0)
        for scenario in group.scenarios:
            yield from _run_scenario(scenario, measured, progress)


def _run_scenario(scenario: Scenario, measured: Mapping[System, _MeasuredSystem], progress: Progress) -> Iterator[Run]:
    """Systems take turns at each load; another one is first in each repeat."""
    for repeat in range(max(point.repeats for point in scenario.points)):
        first = repeat % len(scenario.systems)
        order = scenario.systems[first:] + scenario.systems[:first]
        for point in scenario.points:
            for system in order if repeat < point.repeats else ():
                progress.show_step(f"{scenario.name}: {system.name}, {point.streams} streams")
                time.sleep(_PAUSE_S)
                run = measured[system].run(scenario.name, point, repeat)
                progress.run_finished(run)
                yield run


def _start(name: str, group: Group, context: RunContext, running: ExitStack) -> Server | None:
    if name in group.environments:
        run_dir = context.run_dir / "servers" / name.replace(", ", "-").replace(" ", "-")
        return running.enter_context(our_stack(run_dir, context.engine_dir, group.environments[name]))
    if name in context.starters:
        return running.enter_context(context.starters[name]())
    return None


@contextmanager
def _measured_system(system: System, server: Server | None, context: RunContext) -> Iterator[_MeasuredSystem]:
    log = context.run_dir / "logs" / f"{system.client.value}-{system.server.replace(' ', '-')}.log"
    if system.client is Client.NONE:
        process = LoadProcess("benchmarks.systems.engine_only", str(context.engine_dir), log_path=log)
        roles = {ENGINE: process.pid}
    elif server is None:
        raise ServerError(f"No server is configured for {system.server}.")
    elif system.client is Client.GRPC:
        process = LoadProcess("benchmarks.load.grpc_load", str(server.grpc_address), log_path=log)
        roles = {**server.roots, CLIENT: process.pid}
        del roles[FRONT_END]  # the load bypasses it
    else:
        endpoint = orjson.dumps(asdict(server.endpoint)).decode()
        process = LoadProcess("benchmarks.load.http_load", endpoint, log_path=log)
        roles = {**server.roots, CLIENT: process.pid}
    with process:
        yield _MeasuredSystem(system, process, roles)


class _MeasuredSystem:
    """A started system: its load client and the processes that do its work."""

    def __init__(self, system: System, process: LoadProcess, roots: Mapping[str, int]) -> None:
        self._system = system
        self._process = process
        self._roots = roots

    def run(self, scenario: str, point: LoadPoint, repeat: int) -> Run:
        """Makes one load and returns its figures and cost."""
        processes = processes_by_role(self._roots)
        meter = _Meter(processes, point.memory_every_s)
        seed = f"{scenario} {point.streams} {point.prompt_words} {repeat}"
        timelines = self._process.run(make_job(point, seed), on_start=meter.start, on_end=meter.stop)
        return Run(
            scenario=scenario,
            system=self._system.name,
            point=point,
            repeat=repeat,
            figures=figures_of(timelines, point.streams),
            cpu_s=meter.cpu_s,
            memory_mib=memory_by_role(processes),
            noise=meter.noise,
            memory_over_time=meter.memory_over_time,
        )


class _Meter:
    """CPU time, memory and the machine's other work between `start` and `stop`."""

    def __init__(self, processes: Mapping[str, list[Process]], memory_every_s: float | None) -> None:
        self._processes = processes
        self._memory_every_s = memory_every_s
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self.memory_over_time: list[dict[str, float]] = []

    def start(self) -> None:
        """Takes the values at the start of the load."""
        self._load_before = load_average()
        if self._memory_every_s is not None:
            self._thread = threading.Thread(target=self._watch_memory, args=(self._memory_every_s,), daemon=True)
            self._thread.start()
        self._totals_before: CpuTotals = cpu_totals()
        self._cpu_before = cpu_by_role(self._processes)

    def stop(self) -> None:
        """Takes the values at the end of the load."""
        cpu_after, totals_after = cpu_by_role(self._processes), cpu_totals()
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()
        self.cpu_s = {role: round(cpu_after[role] - self._cpu_before[role], 3) for role in cpu_after}
        self.noise = noise_between(
            self._totals_before, totals_after, sum(self.cpu_s.values()), (self._load_before, load_average())
        )

    def _watch_memory(self, every_s: float) -> None:
        started = time.monotonic()
        while not self._stopped.wait(every_s):
            since_s = round(time.monotonic() - started, 1)
            self.memory_over_time.append({"s": since_s, **memory_by_role(self._processes)})
