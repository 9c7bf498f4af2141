"""The list of steps, and running the selected ones: each with its limit, a progress line and its result."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console

from scripts.prove_on_gpu.context import Context, Runtime
from scripts.prove_on_gpu.outcome import Outcome, Status, StepFailedError, StepResult, StepSkippedError

if TYPE_CHECKING:
    from types import ModuleType


@dataclass(frozen=True)
class Step:
    """One step: a module of `steps`. `needs` is what the machine must have, for people and for --list."""

    name: str
    title: str
    limit_s: float
    needs: str = ""
    needs_tensorrt_llm: bool = True
    is_per_runtime: bool = True


STEPS = (
    Step("versions", "Versions", 300, needs_tensorrt_llm=False, is_per_runtime=False),
    Step("target", "Detection of the GPU", 240, "a GPU", needs_tensorrt_llm=False, is_per_runtime=False),
    Step("plan", "Plans for this GPU", 300, "a GPU", needs_tensorrt_llm=False, is_per_runtime=False),
    Step("signatures", "Signatures of TensorRT-LLM", 300, "TensorRT-LLM", is_per_runtime=False),
    Step("build", "Build of a small model", 420, "a GPU, TensorRT-LLM, --model"),
    Step("verify", "Verification of what was built", 180, "what `build` built"),
    Step("serve", "Start of Triton and the front end", 300, "Triton, TensorRT-LLM, an engine directory"),
    Step("fields", "Request fields, by their effect", 180, "what `serve` started"),
    Step("guides", "Structured output", 90, "what `serve` started"),
    Step("isolation", "Bad guides beside ten good requests", 90, "what `serve` started"),
    Step("cancel", "Time from a disconnect to a free slot", 90, "what `serve` started"),
    Step("load", "Throughput and time to first token", 120, "what `serve` started"),
    Step("death", "Death of a worker, and restart", 420, "what `serve` started"),
)
_SERVED = {"fields", "guides", "isolation", "cancel", "load", "death"}
_ENGINE_RELEASES = ">=1.1,<1.3.dev0"  # as in executors/tensorrt_llm/compatibility.py


@dataclass(frozen=True)
class Job:
    """A step, for one runtime if it depends on it."""

    step: Step
    runtime: Runtime | None

    @property
    def name(self) -> str:
        """Such as `versions` or `engine/serve`."""
        return self.step.name if self.runtime is None else f"{self.runtime}/{self.step.name}"


def all_jobs() -> list[Job]:
    """Returns every job in its order: the common steps, then those of each runtime."""
    common = [Job(step, None) for step in STEPS if not step.is_per_runtime]
    runtimes: tuple[Runtime, ...] = ("engine", "pytorch")
    return common + [Job(step, runtime) for runtime in runtimes for step in STEPS if step.is_per_runtime]


def select(only: Sequence[str], skip: Sequence[str]) -> list[Job]:
    """Returns the jobs that the command line names, as `serve` or `engine/serve`. Raises ValueError for other names."""
    jobs = all_jobs()
    known = {word for job in jobs for word in _words(job)}
    if unknown := sorted({*only, *skip} - known):
        raise ValueError(f"No such step: {', '.join(unknown)}. Steps: {', '.join(step.name for step in STEPS)}.")
    chosen = [job for job in jobs if not only or _words(job) & set(only)]
    return [job for job in chosen if not _words(job) & set(skip)]


def _words(job: Job) -> set[str]:
    return {job.name, job.step.name, *([job.runtime] if job.runtime else [])}


def runs_runtime(runtime: Runtime, version: str) -> bool:
    """Returns whether a release of TensorRT-LLM has a runtime that this project supports there."""
    from packaging.specifiers import SpecifierSet

    from llm_pipeline.engine_files.trtllm_releases import pytorch_profile_of

    if runtime == "pytorch":
        return pytorch_profile_of(version) is not None
    return SpecifierSet(_ENGINE_RELEASES).contains(version, prereleases=True)


def run_jobs(jobs: Sequence[Job], context: Context, console: Console) -> Iterator[StepResult]:
    """Runs the jobs in order and yields each result. The server of a runtime ends with the runtime's last step.

    Steps that have not begun when the time of the whole run has passed are skipped.
    """
    end_s = time.monotonic() + 60 * context.options.minutes
    try:
        for number, job in enumerate(jobs, 1):
            if context.server is not None and job.runtime != context.runtime:
                _stop_server(context)
            console.print(f"[{number}/{len(jobs)}] {job.name}: {job.step.title} ...", markup=False, highlight=False)
            result = _run_job(job, context, end_s)
            colour = {Status.PASSED: "green", Status.FAILED: "bold red", Status.SKIPPED: "yellow"}[result.status]
            console.print(f"    [{colour}]{result.status.value}[/] in {result.duration_s:.1f} s", end=": ")
            console.print(result.message, markup=False, highlight=False, soft_wrap=True)
            yield result
    finally:
        _stop_server(context)


def _stop_server(context: Context) -> None:
    if context.server is not None:
        context.server.stop()
        context.server = None


def _run_job(job: Job, context: Context, end_s: float) -> StepResult:
    started = time.monotonic()
    context.runtime = job.runtime

    def result(status: Status, message: str, outcome: Outcome) -> StepResult:
        duration_s = round(time.monotonic() - started, 2)
        return StepResult(job.name, job.step.title, status, duration_s, job.step.limit_s, message, outcome)

    if started >= end_s:
        minutes = context.options.minutes
        return result(Status.SKIPPED, f"The {minutes:g} minutes of the run have passed: --minutes.", Outcome())
    context.deadline_s = min(started + job.step.limit_s, end_s)
    try:
        _check_needs(job, context)
        outcome = _load(job.step)(context)
    except StepSkippedError as error:
        return result(Status.SKIPPED, str(error), Outcome())
    except StepFailedError as error:
        return result(Status.FAILED, str(error), error.partial)
    except Exception as error:  # noqa: BLE001 - the other steps go on, and the report has the error
        return result(Status.FAILED, f"{type(error).__name__}: {error}", Outcome())
    return result(Status.PASSED, outcome.summary, outcome)


def _check_needs(job: Job, context: Context) -> None:
    if job.step.needs_tensorrt_llm:
        version = context.tensorrt_llm
        if version is None:
            raise StepSkippedError("TensorRT-LLM is not installed here: run this in one of the images of docker/.")
        if job.runtime is not None and not runs_runtime(job.runtime, version):
            raise StepSkippedError(f"TensorRT-LLM {version} has no {job.runtime} runtime that is supported here.")
    if job.step.name in _SERVED and context.server is None:
        raise StepSkippedError(f"No server is running: `{job.runtime}/serve` was left out or failed.")


def _load(step: Step) -> Callable[[Context], Outcome]:
    """Imports the step's module here and not at the top, so that each step needs only its own libraries."""
    module: ModuleType = importlib.import_module(f"scripts.prove_on_gpu.steps.{step.name}")
    run: Callable[[Context], Outcome] = module.run
    return run
