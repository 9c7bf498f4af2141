"""Runs a siege: starts the stack and the probe, goes through the phases, and restarts what a phase has broken."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.machine import git_commit, machine_facts
from benchmarks.siege.load import LoadJob
from benchmarks.siege.load_process import LoadError, running_load
from benchmarks.siege.phases import Phase
from benchmarks.siege.probe import Kind
from benchmarks.siege.results import PhaseResult, Siege
from benchmarks.siege.samples import ProbeSamples, delay, running_probe
from benchmarks.siege.target import Target, keys_file, new_keys
from benchmarks.siege.watch import Watch
from launcher.local.errors import StartError
from launcher.local.stack import Stack
from launcher.ports import free_ports
from launcher.settings import REPOSITORY_ROOT, StackSettings
from llm_pipeline.protocol.executor_names import ExecutorName

_POLL_S = 0.2
_WARM_UP_S = 5.0
_SETTLE_S = 1.0
_RECOVERY_TIMEOUT_S = 90.0
_RECOVERED_SAMPLES = 4  # short requests in a row
_RECOVERED_FACTOR, _RECOVERED_MARGIN_MS = 2.0, 50.0
_LATE_S = 30.0  # beyond what the load's process may take
_PROBE_START_TIMEOUT_S = 60.0

Report = Callable[[str, float], None]  # the current phase, and seconds that have passed of the plan


@dataclass
class Besieged:
    """A running stack that is restarted on the same ports if it does not recover."""

    settings: StackSettings
    memory_limit_mib: float
    console: Console
    _running: ExitStack = field(default_factory=ExitStack)
    watch: Watch | None = None

    def start(self) -> None:
        """Starts the stack and its watch. Raises PreflightError or StartError."""
        stack = Stack(self.settings, self.console)
        self._running.enter_context(stack.running())
        self.watch = Watch(stack, self.memory_limit_mib)
        self._running.callback(self.watch.close)

    def stop(self) -> None:
        """Stops the watch and the stack."""
        self._running.close()
        self._running = ExitStack()

    def restart(self) -> None:
        """Stops the stack and starts it again."""
        self.stop()
        self.start()


@contextmanager
def besieged_stack(
    memory_limit_mib: float, console: Console, executor: ExecutorName = "cpu"
) -> Iterator[tuple[Besieged, Target]]:
    """Runs the stack of `make serve` with default settings, on free ports, with a keys file of this run."""
    with tempfile.TemporaryDirectory(prefix="siege-") as name:
        folder = Path(name)
        keys = new_keys(name)
        path = folder / "api-keys.json"
        path.touch(mode=0o600)
        path.write_bytes(keys_file(keys))
        settings = _stack_settings(folder, path, executor)
        besieged = Besieged(settings, memory_limit_mib, console)
        try:
            besieged.start()
            yield (
                besieged,
                Target(settings.host, settings.port, settings.model_name, keys, has_guides=executor == "cpu"),
            )
        finally:
            besieged.stop()


def _stack_settings(folder: Path, keys_path: Path, executor: ExecutorName) -> StackSettings:
    names = ("port", "triton_http_port", "triton_grpc_port", "triton_metrics_port")
    ports: dict[str, Any] = dict(zip(names, free_ports(len(names)), strict=True))
    base = StackSettings()
    engine_dir = base.engine_dir or base.run_dir / "engines" / "smollm2-135m-instruct" / "cpu-fp16"
    return StackSettings(
        executor=executor,
        api_keys_file=keys_path,
        engine_dir=engine_dir if engine_dir.is_dir() else None,
        run_dir=folder if engine_dir.is_dir() else base.run_dir,
        **ports,
    )


def run_siege(
    phases: Sequence[Phase],
    *,
    seed: int,
    memory_limit_mib: float,
    console: Console,
    on_progress: Report,
    on_result: Callable[[Siege, PhaseResult], None],
    executor: ExecutorName = "cpu",
) -> Siege:
    """Runs all phases. Raises PreflightError or StartError if the stack does not start."""
    siege = Siege(
        when=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        commit=git_commit(REPOSITORY_ROOT),
        machine=machine_facts(),
        settings={"seed": seed, "memory_limit_mib": memory_limit_mib, "executor": executor},
    )
    on_progress("starting the stack", 0.0)
    with (
        besieged_stack(memory_limit_mib, console, executor) as (besieged, target),
        running_probe(target) as samples,
    ):
        _wait_for_probe(samples, target)
        passed_s = 0.0
        for phase in phases:
            runner = _PhaseRunner(phase, besieged, target, samples, seed)
            result = runner.run(lambda text, s, before_s=passed_s: on_progress(text, before_s + s))  # type: ignore[misc]
            quiet = siege.phases[0] if siege.phases else None
            runner.measure(result, quiet)
            siege.phases.append(result)
            passed_s += phase.seconds
            on_result(siege, result)
    return siege


def _wait_for_probe(samples: ProbeSamples, target: Target) -> None:
    """Waits until the probe has been served for some seconds. Raises StartError if it is not served at all."""
    started = time.monotonic()
    expected = {Kind.TTFT, Kind.GAP} | ({Kind.GUIDED_TTFT} if target.has_guides else set())
    while time.monotonic() < started + _PROBE_START_TIMEOUT_S:
        time.sleep(_POLL_S)
        served = samples.ended_since(started, *expected)
        if {sample.kind for sample in served} == expected:
            time.sleep(_WARM_UP_S)
            return
    errors = [sample.detail for sample in samples.ended_since(started, Kind.ERROR)]
    raise StartError(f"The probe is not served on a quiet stack: {errors[:3] or 'no response'}")


class _PhaseRunner:
    """Runs one phase, and measures it once all its samples have ended."""

    def __init__(self, phase: Phase, besieged: Besieged, target: Target, samples: ProbeSamples, seed: int) -> None:
        self._phase = phase
        self._besieged = besieged
        self._target = target
        self._samples = samples
        self._job = LoadJob(target, list(phase.attacks), phase.seconds, seed, phase.random_guides)
        self._start_s = self._end_s = self._load_end_s = 0.0

    def run(self, on_progress: Report) -> PhaseResult:
        """Runs the phase, and returns a result in which the measured values are still missing."""
        assert self._besieged.watch is not None
        result = PhaseResult(
            self._phase.name, self._phase.line, self._phase.seconds, has_guides=self._target.has_guides
        )
        self._besieged.watch.take()
        self._start_s = time.monotonic()
        if self._phase.attacks or self._phase.random_guides:
            self._run_load(result, on_progress)
        else:
            while (passed_s := time.monotonic() - self._start_s) < self._phase.seconds:
                on_progress(self._phase.name, passed_s)
                time.sleep(_POLL_S)
        self._load_end_s = time.monotonic()
        self._end_s = min(self._load_end_s, self._start_s + self._phase.seconds)
        result.seconds = round(self._end_s - self._start_s, 1)
        return result

    def _run_load(self, result: PhaseResult, on_progress: Report) -> None:
        try:
            with running_load(self._job) as load:
                self._start_s = time.monotonic()
                while not load.has_ended:
                    passed_s = time.monotonic() - self._start_s
                    on_progress(self._phase.name, min(passed_s, self._phase.seconds))
                    if passed_s > self._job.longest_s + _LATE_S:
                        break
                    time.sleep(_POLL_S)
                report = load.report()
        except LoadError as error:
            result.notes.append(str(error))
        else:
            result.outcomes, result.unexpected, result.examples = report.outcomes, report.unexpected, report.examples

    def measure(self, result: PhaseResult, quiet: PhaseResult | None) -> None:
        """Waits until the probe is served as before, and adds what it measured. Restarts a stack that stays broken."""
        watch = self._besieged.watch
        assert watch is not None
        result.recovery_s = self._recovery_s(quiet) if quiet is not None else 0.0
        time.sleep(_SETTLE_S)
        result.resources = watch.take()
        result.descriptors_after = dict(result.resources.descriptors)
        if result.recovery_s is None:
            self._besieged.restart()
        self._add_samples(result, quiet)

    def _add_samples(self, result: PhaseResult, quiet: PhaseResult | None) -> None:
        def measured(name: str, kind: Kind) -> Any:
            usual = quiet.delays.get(name) if quiet is not None else None
            found = self._samples.of_phase(self._start_s, self._end_s, kind)
            return delay(found, usual.period_ms if usual is not None else None)

        result.ttft = measured("TTFT", Kind.TTFT)
        result.guided_ttft = measured("guided TTFT", Kind.GUIDED_TTFT)
        result.gap = measured("gap", Kind.GAP)
        result.probe_errors = self._samples.errors_since(self._start_s, self._end_s)
        checks = self._samples.between(self._start_s, self._end_s, Kind.READY, Kind.NOT_READY)
        result.checks = len(checks)
        result.not_ready = [check.detail for check in checks if check.kind is Kind.NOT_READY]

    def _recovery_s(self, quiet: PhaseResult) -> float | None:
        """Returns the time from the end of the load until the probe is served as on the quiet stack."""
        usual_ms = max((d.p99_ms for d in (quiet.ttft, quiet.guided_ttft) if d is not None), default=0.0)
        limit_ms = _RECOVERED_FACTOR * usual_ms + _RECOVERED_MARGIN_MS
        deadline = self._load_end_s + _RECOVERY_TIMEOUT_S
        while time.monotonic() < deadline:
            shorts = self._samples.ended_since(self._load_end_s, Kind.TTFT, Kind.GUIDED_TTFT)
            for number in range(len(shorts) - _RECOVERED_SAMPLES + 1):
                group = shorts[number : number + _RECOVERED_SAMPLES]
                is_streaming = self._samples.ended_since(self._load_end_s, Kind.GAP)
                if is_streaming and all(sample.duration_ms <= limit_ms for sample in group):
                    return round(group[0].start_s - self._load_end_s, 1)
            time.sleep(_POLL_S)
        return None
