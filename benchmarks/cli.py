"""Command line of the benchmark: scenarios, baselines, and where the results go."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.load.job import LoadError
from benchmarks.machine import git_commit, machine_facts, versions
from benchmarks.progress import BarProgress
from benchmarks.report.figures import median
from benchmarks.report.results import Results, ResultsError, Run
from benchmarks.report.tables import report, verdict_lines
from benchmarks.report.targets import Status
from benchmarks.runner import RunContext, run_count, run_group
from benchmarks.scenarios import Client, Group, groups, select
from benchmarks.systems.baselines import Baseline, llama_cpp_baselines, pairs, remote_baselines
from benchmarks.systems.servers import ServerError, build_benchmark_engine, secret, settings_from_environment
from build_engine.errors import BuildEngineError
from launcher.local.errors import PreflightError, StartError
from launcher.settings import REPOSITORY_ROOT

app = typer.Typer(add_completion=False, no_args_is_help=True)

_OUTPUT = REPOSITORY_ROOT / "docs" / "performance"
_RUN_DIR = REPOSITORY_ROOT / ".run" / "bench"
_BUSY_SHARE = 0.05
_COLOURS = {Status.PASS: "green", Status.MISS: "bold red", Status.REPORTED: "cyan", Status.NOT_MEASURED: "dim"}
_CLIENTS = {
    Client.HTTP: "Python, one process, epoll on raw sockets; parses after the clock has stopped",
    Client.GRPC: "Python, one process, grpc.aio, one call for each request; parses after the clock has stopped",
    Client.NONE: "none: the engine's own loop, in one process",
}


@app.command()
def run(
    quick: Annotated[bool, typer.Option("--quick", help="Fewer loads and repeats: about two minutes.")] = False,
    scenario: Annotated[list[str] | None, typer.Option(help="Run only this scenario; repeatable.")] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Output directory. Default: docs/performance for a full run, else .run/bench/results."),
    ] = None,
    base_url: Annotated[
        list[str] | None,
        typer.Option(help="NAME=URL of an OpenAI-compatible baseline, such as vllm=http://127.0.0.1:8000/v1."),
    ] = None,
    baseline_model: Annotated[
        list[str] | None,
        typer.Option("--baseline-model", "--peer-model", help="NAME=MODEL, if the baseline lists several models."),
    ] = None,
    baseline_key: Annotated[
        list[str] | None,
        typer.Option("--baseline-key", "--peer-key", help="NAME=VARIABLE: environment variable with its API key."),
    ] = None,
    llama_server: Annotated[Path | None, typer.Option(help="llama.cpp's server program, which is started.")] = None,
    llama_model: Annotated[list[Path] | None, typer.Option(help="GGUF file for llama.cpp; repeatable.")] = None,
) -> None:
    """Measure; write results.json, results.md and the plots; report which targets were met."""
    console = Console()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        keys = {name: secret(variable) for name, variable in pairs(baseline_key or (), "NAME=VARIABLE").items()}
        baselines = [
            *llama_cpp_baselines(llama_server, llama_model or (), _RUN_DIR / "logs"),
            *remote_baselines(pairs(base_url or (), "NAME=URL"), pairs(baseline_model or (), "NAME=MODEL"), keys),
        ]
        selected = groups([baseline.system for baseline in baselines], is_quick=quick)
        selected = select(selected, scenario) if scenario else selected
        engine_dir = build_benchmark_engine(console)
    except (ValueError, ServerError, BuildEngineError) as error:
        console.print(f"[bold red]Not started.[/] {error}", highlight=False, soft_wrap=True)
        raise typer.Exit(2) from error
    results, is_complete = _measure(selected, baselines, engine_dir, console, is_quick=quick)
    if not results.runs:
        raise typer.Exit(1)
    # The repository contains a full run, which a quick or partial one must not replace by accident.
    output = output or (_RUN_DIR / "results" if quick or scenario else _OUTPUT)
    results.save(output / "results.json")
    _write_report(results, output, console)
    if not is_complete:
        raise typer.Exit(1)


@app.command("report")
def regenerate_report(
    output: Annotated[Path, typer.Option(help="Directory with results.json.")] = _OUTPUT,
) -> None:
    """Write results.md and the plots from an existing results.json."""
    console = Console()
    try:
        _write_report(Results.load(output / "results.json"), output, console)
    except ResultsError as error:
        console.print(f"[bold red]{error}[/]", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error


def _measure(
    selected: Sequence[Group], baselines: Sequence[Baseline], engine_dir: Path, console: Console, *, is_quick: bool
) -> tuple[Results, bool]:
    """Returns the results, and whether every group was measured to its end; a failed one does not end the others."""
    started, started_at = time.monotonic(), datetime.now(timezone.utc)
    context = RunContext(engine_dir, _RUN_DIR, {baseline.system.server: baseline.start for baseline in baselines})
    runs: list[Run] = []
    with BarProgress(console, run_count(selected)) as progress:
        completed = [_measure_group(group, context, progress, runs) for group in selected]
    results = Results(
        started_at=started_at.isoformat(timespec="seconds"),
        duration_s=round(time.monotonic() - started, 1),
        is_quick=is_quick,
        git_commit=git_commit(REPOSITORY_ROOT),
        machine=machine_facts(),
        versions=versions(),
        clients={client.value: description for client, description in _CLIENTS.items()},
        servers=_describe_servers(selected, baselines),
        runs=runs,
    )
    return results, all(completed)


def _measure_group(group: Group, context: RunContext, progress: BarProgress, runs: list[Run]) -> bool:
    """Appends the group's runs; returns False if it has failed before its end."""
    try:
        for run in run_group(group, context, progress):
            runs.append(run)  # noqa: PERF402 - one by one: the runs before a failure count
    except (ServerError, StartError, PreflightError, LoadError) as error:
        progress.group_failed(f"{group.name} was not measured to its end. {error}")
        return False
    return True


def _describe_servers(selected: Sequence[Group], baselines: Sequence[Baseline]) -> dict[str, str]:
    """Returns the settings of each stack and the description of each baseline, by server name."""
    inherited = settings_from_environment()
    descriptions = {}
    for group in selected:
        for name, environment in group.environments.items():
            settings = {**inherited, **environment}
            descriptions[name] = " ".join(f"{key}={value}" for key, value in settings.items())
    return {**descriptions, **{baseline.system.server: baseline.description for baseline in baselines}}


def _write_report(results: Results, output: Path, console: Console) -> None:
    from benchmarks.report.plots import draw  # matplotlib takes a second, which an invalid option should not

    (output / "results.md").write_text(report(results), encoding="utf-8")
    plots = draw(results, output)
    table = Table("target", "limit", "measured", "", box=None, pad_edge=False)
    for description, limit, measured, status in verdict_lines(results):
        table.add_row(description, limit, measured, f"[{_COLOURS[status]}]{status.value}[/]")
    console.print(table)
    other_share = median([run.noise.other_share + run.noise.steal_share for run in results.runs]) or 0.0
    if other_share > _BUSY_SHARE:
        console.print(f"[yellow]Other work used {other_share:.0%} of the CPU: compare ratios, not single values.[/]")
    written = f"Wrote {output / 'results.md'} and {len(plots)} plots."
    console.print(written, highlight=False, soft_wrap=True)


def main() -> None:
    """Runs the program."""
    app()
