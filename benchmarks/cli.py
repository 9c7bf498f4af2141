"""`python -m benchmarks`: what to measure, against whom, and where the results go."""

from __future__ import annotations

import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from benchmarks.machine import git_commit, machine_facts, versions
from benchmarks.results import Results, Run
from benchmarks.runner import Surroundings, run_count, run_group
from benchmarks.scenarios import groups, only
from launcher.settings import REPOSITORY_ROOT

app = typer.Typer(add_completion=False, no_args_is_help=True)


@app.callback()
def commands() -> None:
    """Measures the product and its parts; see docs/performance.md."""


@app.command()
def run(
    quick: Annotated[bool, typer.Option("--quick", help="Fewer loads and repeats: about two minutes.")] = False,
    scenario: Annotated[list[str] | None, typer.Option(help="Only this one; may be given several times.")] = None,
    output: Annotated[Path, typer.Option(help="Folder for results.json.")] = REPOSITORY_ROOT / "docs/performance",
) -> None:
    """Measure, and write results.json."""
    console = Console()
    engine_dir = REPOSITORY_ROOT / ".run/engines/smollm2-135m-instruct/cpu-fp16"
    chosen = groups((), is_quick=quick)
    if scenario:
        chosen = only(chosen, scenario)
    surroundings = Surroundings(engine_dir, REPOSITORY_ROOT / ".run/bench", {})
    started, started_at = time.monotonic(), datetime.now(timezone.utc)
    with _BarProgress(console, run_count(chosen)) as progress:
        runs = [each for group in chosen for each in run_group(group, surroundings, progress)]
    results = Results(
        started_at=started_at.isoformat(timespec="seconds"),
        duration_s=round(time.monotonic() - started, 1),
        is_quick=quick,
        git_commit=git_commit(REPOSITORY_ROOT),
        machine=machine_facts(),
        versions=versions(),
        clients={},
        servers={},
        runs=runs,
    )
    results.save(output / "results.json")


class _BarProgress:
    """A bar that moves from load to load, and a line for each; it is drawn only then, because drawing costs CPU."""

    def __init__(self, console: Console, total: int) -> None:
        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
        self._bar = Bar(*columns, console=console, auto_refresh=False, transient=True, disable=not console.is_terminal)
        self._task = self._bar.add_task("", total=total)
        self._console = console

    def __enter__(self) -> _BarProgress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def doing(self, text: str) -> None:
        self._bar.update(self._task, description=text, refresh=True)

    def finished(self, run: Run) -> None:
        figures = run.figures
        cpu = run.cpu_per_1000_tokens()
        self._console.print(
            f"{run.scenario:14} {run.contender:22} {figures.streams:4} streams  {figures.tokens_per_s:9,.0f} tok/s  "
            f"ttft {figures.ttft_p50_ms or 0:6.1f} ms  gap {figures.gap_p50_ms or 0:6.1f} / "
            f"{figures.gap_p99_ms or 0:6.1f} ms  {cpu or 0:6.3f} CPU s/1000"
            + (f"  [red]{figures.failures} failed: {figures.first_failure}[/]" if figures.failures else ""),
            highlight=False,
            soft_wrap=True,
        )
        self._bar.advance(self._task)


def main() -> None:
    app()
