"""Goes through groups of scenarios: starts their servers, makes each load in turns, and notes what it cost."""

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
from benchmarks.machine import CpuTotals, cpu_totals, load_average, noise_between
from benchmarks.processes import CLIENT, ENGINE, FRONT_END, Process, cpu_by_role, memory_by_role, processes_by_role
from benchmarks.report.figures import figures_of
from benchmarks.report.results import Run
from benchmarks.scenarios import Client, Contender, Group, Point, Scenario, job
from benchmarks.systems.servers import Server, ServerError, our_stack

_PAUSE_S = 0.3  # lets a server put away what the last load left behind
_WARM_UP = Point(streams=4, max_tokens=8)


class Progress(Protocol):
    """Is told what happens, for people who wait."""

    def doing(self, text: str) -> None: ...

    def finished(self, run: Run) -> None: ...


@dataclass(frozen=True)
class Surroundings:
    """Where engines and logs are, and how to start what is not ours."""

    engine_dir: Path
    run_dir: Path
    starters: Mapping[str, Callable[[], AbstractContextManager[Server]]]  # by the contender's server


def run_count(groups: Sequence[Group]) -> int:
    """How many loads these groups are."""
    return sum(
        point.repeats * len(scenario.contenders)
        for group in groups
        for scenario in group.scenarios
        for point in scenario.points
    )


def run_group(group: Group, surroundings: Surroundings, progress: Progress) -> Iterator[Run]:
    """Start what the group needs and yield one run after the other; everything is stopped behind the last."""
    contenders = {each for scenario in group.scenarios for each in scenario.contenders}
    with ExitStack() as running:
        servers: dict[str, Server] = {}
        for name in sorted({contender.server for contender in contenders}):
            progress.doing(f"starting {name}")
            if server := _start(name, group, surroundings, running):
                servers[name] = server
        fighters = {
            contender: running.enter_context(_fighter(contender, servers.get(contender.server), surroundings))
            for contender in sorted(contenders, key=lambda each: each.name)
        }
        for contender, fighter in fighters.items():
            progress.doing(f"warming up {contender.name}")
            fighter.run("warm-up", _WARM_UP, 0)
        for scenario in group.scenarios:
            yield from _run_scenario(scenario, fighters, progress)


def _run_scenario(scenario: Scenario, fighters: Mapping[Contender, _Fighter], progress: Progress) -> Iterator[Run]:
    """Contenders take turns at each load, and another one begins in each repeat."""
    for repeat in range(max(point.repeats for point in scenario.points)):
        first = repeat % len(scenario.contenders)
        order = scenario.contenders[first:] + scenario.contenders[:first]
        for point in scenario.points:
            for contender in order if repeat < point.repeats else ():
                progress.doing(f"{scenario.name}: {contender.name}, {point.streams} streams")
                time.sleep(_PAUSE_S)
                run = fighters[contender].run(scenario.name, point, repeat)
                progress.finished(run)
                yield run


def _start(name: str, group: Group, surroundings: Surroundings, running: ExitStack) -> Server | None:
    if name in group.environments:
        run_dir = surroundings.run_dir / "servers" / name.replace(", ", "-").replace(" ", "-")
        return running.enter_context(our_stack(run_dir, surroundings.engine_dir, group.environments[name]))
    if name in surroundings.starters:
        return running.enter_context(surroundings.starters[name]())
    return None


@contextmanager
def _fighter(contender: Contender, server: Server | None, surroundings: Surroundings) -> Iterator[_Fighter]:
    log = surroundings.run_dir / "logs" / f"{contender.client.value}-{contender.server.replace(' ', '-')}.log"
    if contender.client is Client.NONE:
        process = LoadProcess("benchmarks.systems.engine_only", str(surroundings.engine_dir), log_path=log)
        roles = {ENGINE: process.pid}
    elif server is None:
        raise ServerError(f"Nothing starts {contender.server}.")
    elif contender.client is Client.GRPC:
        process = LoadProcess("benchmarks.load.grpc_load", str(server.grpc_address), log_path=log)
        roles = {**server.roots, CLIENT: process.pid}
        del roles[FRONT_END]  # it does not take part
    else:
        endpoint = orjson.dumps(asdict(server.endpoint)).decode()
        process = LoadProcess("benchmarks.load.http_load", endpoint, log_path=log)
        roles = {**server.roots, CLIENT: process.pid}
    with process:
        yield _Fighter(contender, process, roles)


class _Fighter:
    """A contender that is ready, and the processes that work for it."""

    def __init__(self, contender: Contender, process: LoadProcess, roots: Mapping[str, int]) -> None:
        self._contender = contender
        self._process = process
        self._roots = roots

    def run(self, scenario: str, point: Point, repeat: int) -> Run:
        """Make one load and note all about it."""
        processes = processes_by_role(self._roots)
        meter = _Meter(processes, point.memory_every_s)
        seed = f"{scenario} {point.streams} {point.prompt_words} {repeat}"
        timelines = self._process.run(job(point, seed), on_start=meter.start, on_end=meter.stop)
        return Run(
            scenario=scenario,
            contender=self._contender.name,
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
        self._load_before = load_average()
        if self._memory_every_s is not None:
            self._thread = threading.Thread(target=self._watch_memory, args=(self._memory_every_s,), daemon=True)
            self._thread.start()
        self._totals_before: CpuTotals = cpu_totals()
        self._cpu_before = cpu_by_role(self._processes)

    def stop(self) -> None:
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
