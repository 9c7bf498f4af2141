"""Runs the jobs of a fleet and collects their results."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from threading import Event

from build_engine.artifact.result import BuildResult
from build_engine.errors import BuildEngineError, EngineRefusedError
from build_engine.fleet.file import FleetEngine
from build_engine.fleet.jobs import Job, OtherMachineError
from build_engine.progress import Advance, BuildProgress
from llm_pipeline.engine_files.manifest import ManifestError

DEFAULT_PARALLEL = 4


class FleetOutcome(Enum):
    BUILT = "built"
    REUSED = "reused"
    REFUSED = "refused"
    OTHER_MACHINE = "other machine"
    FAILED = "failed"
    NOT_STARTED = "not started"
    WOULD_BUILD = "would build"  # dry run
    EXISTS = "is there"  # dry run: found, but its files are not checked


_DONE = {FleetOutcome.BUILT, FleetOutcome.REUSED}
_DRY_RUN = {FleetOutcome.WOULD_BUILD, FleetOutcome.EXISTS}


@dataclass(frozen=True)
class FleetResult:
    engine: FleetEngine
    outcome: FleetOutcome
    engine_dir: Path | None = None
    size_bytes: int | None = None
    duration_s: float = 0.0
    reasons: tuple[str, ...] = ()


def dry_run(jobs: Sequence[Job]) -> list[FleetResult]:
    """Reports what a run would do. Nothing is hashed, so an existing engine may be damaged."""
    return [_dry_result(job) for job in jobs]


def _dry_result(job: Job) -> FleetResult:
    if job.refusals:
        return _refused(job)
    outcome = FleetOutcome.EXISTS if job.exists else FleetOutcome.WOULD_BUILD
    return FleetResult(job.engine, outcome, job.engine_dir)


def run_fleet(
    jobs: Sequence[Job], progress: BuildProgress, continue_on_error: bool = False, parallel: int = DEFAULT_PARALLEL
) -> list[FleetResult]:
    """One result per job, in order. After a failure no further job is started, unless `continue_on_error`.

    Jobs that only read and link a model run `parallel` at a time. All others compile or load a model and need the
    whole machine: they run one after the other, in the calling thread, which an interrupt from the keyboard reaches.
    """
    fleet = _Fleet(jobs, progress, continue_on_error)
    with progress.step(f"fleet of {len(jobs)}", len(jobs)) as advance, ThreadPoolExecutor(parallel) as pool:
        try:
            light = {
                index: pool.submit(fleet.run, index, advance)
                for index, job in enumerate(jobs)
                if job.work and not job.work.needs_machine
            }
            heavy = {index: fleet.run(index, advance) for index in range(len(jobs)) if index not in light}
            return [heavy[index] if index in heavy else light[index].result() for index in range(len(jobs))]
        except BaseException:
            fleet.stop()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


class _Fleet:
    """The state that the jobs of one run share."""

    def __init__(self, jobs: Sequence[Job], progress: BuildProgress, continue_on_error: bool) -> None:
        self._jobs = jobs
        self._progress = progress
        self._continue_on_error = continue_on_error
        self._has_failed = Event()
        self._is_stopped = Event()

    def run(self, index: int, advance: Advance) -> FleetResult:
        job = self._jobs[index]
        try:
            if job.refusals:
                return _refused(job)
            if self._is_stopped.is_set() or (self._has_failed.is_set() and not self._continue_on_error):
                return FleetResult(job.engine, FleetOutcome.NOT_STARTED, job.engine_dir)
            self._progress.note(f"{index + 1} of {len(self._jobs)}: {job.engine.label}")
            result = _run(job, _NumberedProgress(self._progress, index + 1, self._is_stopped))
            if result.outcome is FleetOutcome.FAILED:
                self._has_failed.set()
            return result
        finally:
            advance(1)

    def stop(self) -> None:
        """Ends the running jobs at their next progress."""
        self._is_stopped.set()


class _NumberedProgress:
    """Puts the number of a job before each of its steps and notes, since jobs run at the same time."""

    def __init__(self, progress: BuildProgress, number: int, is_stopped: Event) -> None:
        self._progress = progress
        self._number = number
        self._is_stopped = is_stopped

    @contextmanager
    def step(self, label: str, total: int | None = None) -> Iterator[Advance]:
        with self._progress.step(f"{self._number}: {label}", total) as advance:

            def advance_unless_stopped(amount: int) -> None:
                if self._is_stopped.is_set():
                    raise BuildEngineError("The fleet was interrupted.")
                advance(amount)

            yield advance_unless_stopped

    def note(self, text: str) -> None:
        self._progress.note(f"{self._number}: {text}")


def _refused(job: Job) -> FleetResult:
    return FleetResult(job.engine, FleetOutcome.REFUSED, reasons=job.refusals)


def _run(job: Job, progress: BuildProgress) -> FleetResult:
    """Expected errors become results. Any other exception is a bug and ends the fleet."""
    started = time.monotonic()
    assert job.work
    try:
        result = job.work.run(progress)
    except (BuildEngineError, ManifestError, OSError) as error:
        outcome = _outcome_of(error)
        return FleetResult(
            job.engine, outcome, job.engine_dir, duration_s=time.monotonic() - started, reasons=(str(error),)
        )
    return _finished(job, result, time.monotonic() - started)


def _outcome_of(error: Exception) -> FleetOutcome:
    if isinstance(error, OtherMachineError):
        return FleetOutcome.OTHER_MACHINE
    return FleetOutcome.REFUSED if isinstance(error, EngineRefusedError) else FleetOutcome.FAILED


def _finished(job: Job, result: BuildResult, duration_s: float) -> FleetResult:
    size = sum(file.size_bytes for file in result.manifest.files.values())
    outcome = FleetOutcome.REUSED if result.reused else FleetOutcome.BUILT
    return FleetResult(job.engine, outcome, result.engine_dir, size, duration_s)


def exit_status(results: Sequence[FleetResult]) -> int:
    """0: every engine exists (or could be built, for a dry run). 1: one failed. 3: some are missing."""
    outcomes = {result.outcome for result in results}
    if FleetOutcome.FAILED in outcomes:
        return BuildEngineError.exit_status
    return 0 if outcomes <= _DONE | _DRY_RUN else EngineRefusedError.exit_status
