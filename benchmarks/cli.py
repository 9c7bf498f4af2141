"""`python -m benchmarks`: what to measure, against whom, and where the results go."""

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
from benchmarks.runner import Surroundings, run_count, run_group
from benchmarks.scenarios import Client, Group, groups, only
from benchmarks.systems.baselines import Peer, llama_cpp_peers, named_peers, pairs
from benchmarks.systems.servers import ServerError, build_default_engine, secret, settings_from_environment
from benchmarks.targets import Status
from build_engine.errors import BuildEngineError
from launcher.local.errors import PreflightError, StartError
from launcher.settings import REPOSITORY_ROOT

app = typer.Typer(add_completion=False, no_args_is_help=True)

_OUTPUT = REPOSITORY_ROOT / "docs" / "performance"
_RUN_DIR = REPOSITORY_ROOT / ".run" / "bench"
_BUSY_SHARE = 0.05
_COLOURS = {Status.PASS: "green", Status.MISS: "bold red", Status.REPORTED: "cyan", Status.NOT_MEASURED: "dim"}
_CLIENTS = {
    Client.HTTP: "Python, one process, epoll on raw sockets; parsed when the clock has stopped",
    Client.GRPC: "Python, one process, grpc.aio, one call for each request; parsed when the clock has stopped",
    Client.NONE: "none: the engine's own loop, in one process",
}


@app.command()
def run(
    quick: Annotated[bool, typer.Option("--quick", help="Fewer loads and repeats: about two minutes.")] = False,
    scenario: Annotated[list[str] | None, typer.Option(help="Only this one; may be given several times.")] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder for the results; docs/performance for a full run, .run/bench/results for others."),
    ] = None,
    base_url: Annotated[
        list[str] | None,
        typer.Option(help="NAME=URL of an OpenAI-compatible peer, such as vllm=http://127.0.0.1:8000/v1."),
    ] = None,
    peer_model: Annotated[list[str] | None, typer.Option(help="NAME=MODEL, when the peer lists several.")] = None,
    peer_key: Annotated[
        list[str] | None, typer.Option(help="NAME=VARIABLE, the environment variable with the peer's API key.")
    ] = None,
    llama_server: Annotated[Path | None, typer.Option(help="llama.cpp's server program, to be started here.")] = None,
    llama_model: Annotated[
        list[Path] | None, typer.Option(help="GGUF file for it; may be given several times.")
    ] = None,
) -> None:
    """Measure; write results.json, results.md and the plots; say which targets were met."""
    console = Console()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        keys = {name: secret(variable) for name, variable in pairs(peer_key or (), "NAME=VARIABLE").items()}
        peers = [
            *llama_cpp_peers(llama_server, llama_model or (), _RUN_DIR / "logs"),
            *named_peers(pairs(base_url or (), "NAME=URL"), pairs(peer_model or (), "NAME=MODEL"), keys),
        ]
        chosen = groups([peer.contender for peer in peers], is_quick=quick)
        chosen = only(chosen, scenario) if scenario else chosen
        engine_dir = build_default_engine(console)
    except (ValueError, ServerError, BuildEngineError) as error:
        console.print(f"[bold red]Not started.[/] {error}", highlight=False, soft_wrap=True)
        raise typer.Exit(2) from error
    started, started_at = time.monotonic(), datetime.now(timezone.utc)
    surroundings = Surroundings(engine_dir, _RUN_DIR, {peer.contender.server: peer.start for peer in peers})
    runs, is_complete = _measure(chosen, surroundings, console)
    if not runs:
        raise typer.Exit(1)
    results = Results(
        started_at=started_at.isoformat(timespec="seconds"),
        duration_s=round(time.monotonic() - started, 1),
        is_quick=quick,
        git_commit=git_commit(REPOSITORY_ROOT),
        machine=machine_facts(),
        versions=versions(),
        clients={client.value: what for client, what in _CLIENTS.items()},
        servers=_servers(chosen, peers),
        runs=runs,
    )
    # What is in the repository is a full run; a quick look or a part must not take its place by accident.
    output = output or (_RUN_DIR / "results" if quick or scenario else _OUTPUT)
    results.save(output / "results.json")
    _write_up(results, output, console)
    if not is_complete:
        raise typer.Exit(1)


@app.command("report")
def write_report(
    output: Annotated[Path, typer.Option(help="Folder with results.json.")] = _OUTPUT,
) -> None:
    """Write results.md and the plots anew from results.json."""
    console = Console()
    try:
        _write_up(Results.load(output / "results.json"), output, console)
    except ResultsError as error:
        console.print(f"[bold red]{error}[/]", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error


def _measure(chosen: Sequence[Group], surroundings: Surroundings, console: Console) -> tuple[list[Run], bool]:
    """All runs that could be made, and whether these are all: a group that does not start leaves the others alone."""
    runs: list[Run] = []
    with BarProgress(console, run_count(chosen)) as progress:
        ends = [_measure_group(group, surroundings, progress, runs) for group in chosen]
    return runs, all(ends)


def _measure_group(group: Group, surroundings: Surroundings, progress: BarProgress, runs: list[Run]) -> bool:
    """Add the group's runs; False when it was given up on the way."""
    try:
        for each in run_group(group, surroundings, progress):
            runs.append(each)  # noqa: PERF402 - one by one: what was measured before a failure counts
    except (ServerError, StartError, PreflightError, LoadError) as error:
        progress.failed(f"{group.name} was given up. {error}")
        return False
    return True


def _servers(chosen: Sequence[Group], peers: Sequence[Peer]) -> dict[str, str]:
    """What each server ran with, in words."""
    inherited = settings_from_environment()
    found = {}
    for group in chosen:
        for name, environment in group.environments.items():
            settings = {**inherited, **environment}
            found[name] = " ".join(f"{key}={value}" for key, value in settings.items())
    return {**found, **{peer.contender.server: peer.description for peer in peers}}


def _write_up(results: Results, output: Path, console: Console) -> None:
    from benchmarks.report.plots import draw  # takes a second, which a bad option should not

    (output / "results.md").write_text(report(results), encoding="utf-8")
    drawn = draw(results, output)
    table = Table("what", "target", "measured", "", box=None, pad_edge=False)
    for what, goal, measured, status in verdict_lines(results):
        table.add_row(what, goal, measured, f"[{_COLOURS[status]}]{status.value}[/]")
    console.print(table)
    others = median([run.noise.other_share + run.noise.steal_share for run in results.runs]) or 0.0
    if others > _BUSY_SHARE:
        console.print(f"[yellow]Other work took {others:.0%} of this machine: read ratios, not digits.[/]")
    console.print(f"{output / 'results.md'}, results.json and {len(drawn)} plots", highlight=False, soft_wrap=True)


def main() -> None:
    app()
