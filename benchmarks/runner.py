"""Runs groups of scenarios: starts their servers, makes each load in turns, and measures its cost."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Protocol

import orjson

from benchmarks.load.job import LoadClients
from benchmarks.load.point import LoadPoint, make_job
from benchmarks.machine import CpuTotals, cpu_totals, load_average, noise_between
from benchmarks.processes import CLIENT, ENGINE, FRONT_END, Process, cpu_by_role, memory_by_role, processes_by_role
from benchmarks.report.figures import figures_of
from benchmarks.report.results import Run
from benchmarks.scenarios import Client, Group, Scenario, System
from benchmarks.systems.programs import ServerError
from benchmarks.systems.servers import Server, other_stack, our_stack

_PAUSE_S = 0.3  # lets a server clean up after the last load
_WARM_UP = LoadPoint(streams=4, max_tokens=8)


class Progress(Protocol):
    """Shows the progress of a run."""

    def show_step(self, text: str) -> None:
        """Shows the current step."""

    def run_finished(self, run: Run) -> None:
        """Counts one finished load."""

    def failed(self, text: str) -> None:
        """Reports a system or group that is not measured."""


@dataclass(frozen=True)
class RunContext:
    """Directories of engine and logs, and how to start the servers that are not our stacks."""

    engine_dir: Path
    run_dir: Path
    starters: Mapping[str, Callable[[], AbstractContextManager[Server]]]  # by server name
    other_tree: Path | None = None  # the second source tree
    load_processes: int = 1  # at most, for each system


def run_count(groups: Sequence[Group]) -> int:
    """Returns the number of loads."""
    return sum(
        point.repeats * len(scenario.systems)
        for group in groups
        for scenario in group.scenarios
        for point in scenario.points
    )


def run_group(group: Group, context: RunContext, progress: Progress) -> Iterator[Run]:
    """Starts the servers of the group, yields one run after another, and stops the servers at the end.

    A server by others that does not start is reported and left out. Raises ServerError, StartError, PreflightError or
    LoadError if one of ours does not start, or a load fails.
    """
    systems = {system for scenario in group.scenarios for system in scenario.systems}
    with ExitStack() as running:
        servers: dict[str, Server] = {}
        for name in sorted({system.server for system in systems}):
            progress.show_step(f"starting {name}")
            try:
                server = _start(name, group, context, running)
            except ServerError as error:
                if name not in context.starters:
                    raise
                progress.failed(f"{name} is not measured. {error}")
                systems = {system for system in systems if system.server != name}
            else:
                servers |= {name: server} if server else {}
        measured = {
            system: running.enter_context(_measured_system(system, servers.get(system.server), context))
            for system in sorted(systems, key=lambda system: system.name)
        }
        for system, to_warm_up in measured.items():
            progress.show_step(f"warming up {system.name}")
            to_warm_up.run("warm-up", _WARM_UP, 0)
        for scenario in group.scenarios:
            started = tuple(system for system in scenario.systems if system in measured)
            yield from _run_scenario(replace(scenario, systems=started), measured, progress)


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
    run_dir = context.run_dir / "servers" / "".join(letter if letter.isalnum() else "-" for letter in name)
    if name in group.other_tree:
        assert context.other_tree is not None
        return running.enter_context(
            other_stack(context.other_tree, run_dir, context.engine_dir, group.environments[name])
        )
    if name in group.environments:
        return running.enter_context(our_stack(run_dir, context.engine_dir, group.environments[name]))
    if name in context.starters:
        return running.enter_context(context.starters[name]())
    return None


@contextmanager
def _measured_system(system: System, server: Server | None, context: RunContext) -> Iterator[_MeasuredSystem]:
    log = context.run_dir / "logs" / f"{system.client.value}-{system.server.replace(' ', '-')}.log"
    if system.client is Client.NONE:
        clients = LoadClients(1, "benchmarks.systems.engine_only", str(context.engine_dir), log_path=log)
        roots = dict.fromkeys(clients.pids, ENGINE)
    elif server is None:
        raise ServerError(f"No server is configured for {system.server}.")
    else:
        clients = _clients_of(system, server, context.load_processes, log)
        # The load of a gRPC client bypasses the front end.
        is_used = {role: not (role == FRONT_END and system.client is Client.GRPC) for role in server.roots}
        roots = {pid: role for role, pid in server.roots.items() if is_used[role]} | dict.fromkeys(clients.pids, CLIENT)
    with clients:
        yield _MeasuredSystem(system, clients, roots)


def _clients_of(system: System, server: Server, count: int, log: Path) -> LoadClients:
    if system.client is Client.GRPC:
        return LoadClients(count, "benchmarks.load.grpc_load", str(server.grpc_address), log_path=log)
    endpoint = orjson.dumps(asdict(server.endpoint)).decode()
    return LoadClients(count, "benchmarks.load.http_load", endpoint, log_path=log)


class _MeasuredSystem:
    """A started system: its load clients, and the processes that do its work with their roles."""

    def __init__(self, system: System, clients: LoadClients, roots: Mapping[int, str]) -> None:
        self._system = system
        self._clients = clients
        self._roots = roots

    def run(self, scenario: str, point: LoadPoint, repeat: int) -> Run:
        """Makes one load and returns its figures and cost."""
        processes = processes_by_role((role, pid) for pid, role in self._roots.items())
        meter = _Meter(processes, point.memory_every_s)
        seed = f"{scenario} {point.streams} {point.prompt_words} {repeat}"
        job = make_job(point, seed)
        timelines = self._clients.run(job, on_start=meter.start, on_end=meter.stop)
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
            load_processes=self._clients.count_for(job),
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
