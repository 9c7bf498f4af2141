"""Runs the jobs of a fleet one at a time and collects their results."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from build_engine.artifact.result import BuildResult
from build_engine.errors import BuildEngineError, EngineRefusedError
from build_engine.fleet.file import FleetEngine
from build_engine.fleet.jobs import Job, OtherMachineError
from build_engine.progress import BuildProgress
from llm_pipeline.engine_files.manifest import ManifestError


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


def run_fleet(jobs: Sequence[Job], progress: BuildProgress, continue_on_error: bool = False) -> list[FleetResult]:
    """One result per job. After a failure the remaining jobs are not started, unless `continue_on_error`."""
    results: list[FleetResult] = []
    with progress.step(f"fleet of {len(jobs)}", len(jobs)) as advance:
        for number, job in enumerate(jobs, start=1):
            has_failed = any(result.outcome is FleetOutcome.FAILED for result in results)
            if job.refusals:
                results.append(_refused(job))
            elif has_failed and not continue_on_error:
                results.append(FleetResult(job.engine, FleetOutcome.NOT_STARTED, job.engine_dir))
            else:
                progress.note(f"{number} of {len(jobs)}: {job.engine.label}")
                results.append(_run(job, progress))
            advance(1)
    return results


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
