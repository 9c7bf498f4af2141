"""The command line.

Exit status: 0 everything passed, 1 a step failed, 2 wrong usage, 4 none failed and some were skipped.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from scripts.prove_on_gpu.context import ROOT, Context, Options, Runtime
from scripts.prove_on_gpu.outcome import Status, StepResult
from scripts.prove_on_gpu.report import Report
from scripts.prove_on_gpu.runner import STEPS, Job, run_jobs, select

STAND_INS = "PROVE_STAND_INS"  # environment variable: directory of a stand-in for tensorrt_llm; for tests
_INCOMPLETE = 4
_RUNTIMES: tuple[Runtime, ...] = ("engine", "pytorch")

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def _words(value: str | None) -> list[str]:
    return [word.strip() for word in (value or "").split(",") if word.strip()]


def _parse_engines(values: list[str]) -> dict[Runtime, Path]:
    """Parses `engine=DIR` and `pytorch=DIR`. Raises ValueError for anything else."""
    engines: dict[Runtime, Path] = {}
    for value in values:
        name, _, folder = value.partition("=")
        runtime = next((item for item in _RUNTIMES if item == name), None)
        if runtime is None or not (Path(folder) / "manifest.json").is_file():
            raise ValueError(f"--engine {value}: write engine=DIR or pytorch=DIR, where DIR has a manifest.json.")
        engines[runtime] = Path(folder).absolute()
    return engines


@app.command()
def prove(
    model: Annotated[
        Path | None, typer.Option(help="A small model to build and serve: a Hugging Face directory.", exists=True)
    ] = None,
    precision: Annotated[str, typer.Option(help="Precision of the builds.")] = "auto",
    engine: Annotated[
        list[str] | None,
        typer.Option(
            help="An engine directory to serve instead of building one: engine=DIR or pytorch=DIR. Repeatable."
        ),
    ] = None,
    only: Annotated[
        str | None, typer.Option(help="Steps to run, comma separated: versions,target or engine/serve.")
    ] = None,
    skip: Annotated[str | None, typer.Option(help="Steps to leave out, comma separated.")] = None,
    output: Annotated[Path, typer.Option(help="Directory of report.md, report.json and the logs.")] = ROOT
    / ".run"
    / "proof",
    concurrency: Annotated[str, typer.Option(help="Concurrent streams of `load`, comma separated.")] = "1,8,32",
    cancels: Annotated[int, typer.Option(help="Disconnects of `cancel`.", min=2)] = 40,
    max_tokens: Annotated[int, typer.Option(help="Tokens of each completion of `load`.", min=8)] = 128,
    minutes: Annotated[float, typer.Option(help="Limit of the whole run; steps that are left are skipped.")] = 30,
    list_steps: Annotated[bool, typer.Option("--list", help="List the steps and what each needs.")] = False,
) -> None:
    """Check on a GPU machine what could not be checked without one, and write a report.

    Exit status: 0 everything passed, 1 a step failed, 2 wrong usage, 4 none failed and some were skipped.
    """
    console = Console()
    if list_steps:
        console.print(_steps_table())
        return
    try:
        stand_ins = os.environ.get(STAND_INS)
        options = Options(
            output=output.absolute(),
            model=model.absolute() if model else None,
            precision=precision,
            engines=_parse_engines(engine or []),
            concurrency=tuple(int(word) for word in _words(concurrency)),
            cancels=cancels,
            max_tokens=max_tokens,
            minutes=minutes,
            stand_ins=Path(stand_ins).absolute() if stand_ins else None,
        )
        jobs = select(_words(only), _words(skip))
        if not jobs:
            raise ValueError("--only and --skip leave no step.")
    except ValueError as error:
        console.print(f"[bold red]Not started.[/] {error}", highlight=False, soft_wrap=True)
        raise typer.Exit(2) from error
    raise typer.Exit(_run(jobs, options, console))


def _run(jobs: Sequence[Job], options: Options, console: Console) -> int:
    """Runs the jobs and returns the exit status. The report is saved after each, so that a killed run has one too."""
    started, started_at = time.monotonic(), datetime.now(timezone.utc)
    results: list[StepResult] = []
    for result in run_jobs(jobs, Context(options, engine_dirs=dict(options.engines)), console):
        results.append(result)
        report = Report(
            started=started_at.isoformat(timespec="seconds"),
            duration_s=round(time.monotonic() - started, 1),
            git_commit=_git_commit(),
            is_stand_in=options.stand_ins is not None,
            command=shlex.join(["scripts/prove-on-gpu", *sys.argv[1:]]),
            results=results,
        )
        report.save(options.output)
    console.print(f"Written: {options.output}/report.md and report.json", highlight=False, soft_wrap=True)
    statuses = {result.status for result in results}
    if Status.FAILED in statuses:
        return 1
    return _INCOMPLETE if Status.SKIPPED in statuses else 0


def _steps_table() -> Table:
    table = Table("step", "needs", "without TensorRT-LLM", "limit", "what it does")
    for step in STEPS:
        runs_without = "" if step.needs_tensorrt_llm else "yes"
        table.add_row(step.name, step.needs or "nothing", runs_without, f"{step.limit_s:.0f} s", step.title)
    return table


def _git_commit() -> str | None:
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
