"""Command line of the benchmark: scenarios, baselines, and where the results go."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from benchmarks import options
from benchmarks.load.job import LoadError
from benchmarks.machine import allow_open_files, git_commit, load_processes, machine_facts, versions
from benchmarks.progress import BarProgress
from benchmarks.report.figures import median
from benchmarks.report.results import Results, ResultsError, Run
from benchmarks.report.tables import report, verdict_lines
from benchmarks.report.targets import Status
from benchmarks.runner import RunContext, run_count, run_group
from benchmarks.scenarios import LARGE_SCENARIOS, Client, Group, Plan, groups, select, with_repeats
from benchmarks.systems.baselines import Baseline, RemoteOptions, llama_cpp_baselines, nvidia_peers
from benchmarks.systems.programs import ServerError
from benchmarks.systems.servers import build_benchmark_engine, check_tree, settings_from_environment
from build_engine.errors import BuildEngineError
from launcher.local.errors import PreflightError, StartError
from launcher.settings import REPOSITORY_ROOT

app = typer.Typer(add_completion=False, no_args_is_help=True)

_OUTPUT = REPOSITORY_ROOT / "docs" / "performance"
_RUN_DIR = REPOSITORY_ROOT / ".run" / "bench"
_BUSY_SHARE = 0.05
_COLOURS = {Status.PASS: "green", Status.MISS: "bold red", Status.REPORTED: "cyan", Status.NOT_MEASURED: "dim"}
_CLIENTS = {
    Client.HTTP: "Python, epoll on raw sockets, one process or more; parses after the clock has stopped",
    Client.GRPC: "Python, grpc.aio, one call for each request, one process or more; parses after the clock has stopped",
    Client.NONE: "none: the engine's own loop, in one process",
}


@app.command()
def run(
    quick: options.Quick = False,
    large: options.Large = False,
    workers: options.Workers = None,
    scenario: options.Scenarios = None,
    repeats: options.Repeats = None,
    against: options.Against = None,
    machine_note: options.MachineNote = None,
    output: options.Output = None,
    base_url: options.BaseUrls = None,
    peer_url: options.PeerUrls = None,
    baseline_model: options.BaselineModels = None,
    baseline_key: options.BaselineKeys = None,
    nvidia_frontend: options.NvidiaFrontEnd = None,
    nvidia_python: options.NvidiaPython = "python3",
    llama_server: options.LlamaServer = None,
    llama_model: options.LlamaModels = None,
) -> None:
    """Measure; write results.json, results.md and the plots; report which targets were met."""
    console = Console()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        remote = RemoteOptions.parse(base_url or (), peer_url or (), baseline_model or (), baseline_key or ())
        baselines = [*llama_cpp_baselines(llama_server, llama_model or (), _RUN_DIR / "logs"), *remote.baselines()]
        engine_dir = build_benchmark_engine(console)
        nvidia = nvidia_peers(nvidia_frontend, nvidia_python, engine_dir, _RUN_DIR / "logs")
        peers = [*nvidia, *remote.peers()]
        plan = Plan(
            is_quick=quick,
            is_large=large or not {*(scenario or ())}.isdisjoint(LARGE_SCENARIOS),
            workers=tuple(workers or (1, 4, 8)),
            baselines=tuple(baseline.system for baseline in baselines),
            peers=tuple(peer.system for peer in peers),
            has_other_tree=against is not None,
        )
        selected = select(groups(plan), scenario) if scenario else groups(plan)
        selected = with_repeats(selected, repeats) if repeats else selected
        measurement = _Measurement(engine_dir, [*baselines, *peers], against and check_tree(against), machine_note)
    except (ValueError, ServerError, BuildEngineError) as error:
        console.print(f"[bold red]Not started.[/] {error}", highlight=False, soft_wrap=True)
        raise typer.Exit(2) from error
    results, is_complete = measurement.run(selected, console, is_quick=quick)
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


@dataclass(frozen=True)
class _Measurement:
    """What takes part in a run, apart from our own stacks."""

    engine_dir: Path
    others: Sequence[Baseline]
    other_tree: Path | None
    machine_note: str | None

    def run(self, selected: Sequence[Group], console: Console, *, is_quick: bool) -> tuple[Results, bool]:
        """Returns the results, and whether all was measured; a group or system that fails does not end the others."""
        allow_open_files()
        started, started_at = time.monotonic(), datetime.now(timezone.utc)
        machine = machine_facts(self.machine_note)
        context = RunContext(
            self.engine_dir,
            _RUN_DIR,
            {other.system.server: other.start for other in self.others},
            self.other_tree,
            load_processes(machine.cores),
        )
        runs: list[Run] = []
        with BarProgress(console, run_count(selected)) as progress:
            for group in selected:
                _measure_group(group, context, progress, runs)
        results = Results(
            started_at=started_at.isoformat(timespec="seconds"),
            duration_s=round(time.monotonic() - started, 1),
            is_quick=is_quick,
            git_commit=git_commit(REPOSITORY_ROOT),
            machine=machine,
            versions=versions(),
            clients={client.value: description for client, description in _CLIENTS.items()},
            servers=self._describe_servers(selected),
            runs=runs,
        )
        return results, not progress.has_failures

    def _describe_servers(self, selected: Sequence[Group]) -> dict[str, str]:
        """Returns the settings of each stack and the description of each other server, by server name."""
        inherited = settings_from_environment()
        descriptions = {}
        for group in selected:
            for name, environment in group.environments.items():
                settings = " ".join(f"{key}={value}" for key, value in {**inherited, **environment}.items())
                tree = self.other_tree if name in group.other_tree else None
                descriptions[name] = f"commit {git_commit(tree)}, {settings}" if tree else settings
        return {**descriptions, **{other.system.server: other.description for other in self.others}}


def _measure_group(group: Group, context: RunContext, progress: BarProgress, runs: list[Run]) -> None:
    """Appends the group's runs: all of them, or those before a failure."""
    try:
        for run in run_group(group, context, progress):
            runs.append(run)  # noqa: PERF402 - one by one: the runs before a failure count
    except (ServerError, StartError, PreflightError, LoadError) as error:
        progress.failed(f"{group.name} was not measured to its end. {error}")


def _write_report(results: Results, output: Path, console: Console) -> None:
    from benchmarks.report.plots import draw  # matplotlib takes a second, which an invalid option should not

    (output / "results.md").write_text(report(results), encoding="utf-8")
    plots = draw(results, output)
    table = Table("target", "limit", "measured", "", box=None, pad_edge=False)
    verdicts = verdict_lines(results)
    for description, limit, measured, status in verdicts:
        if status is not Status.NOT_MEASURED:
            table.add_row(description, limit, measured, f"[{_COLOURS[status]}]{status.value}[/]")
    console.print(table)
    if left_out := sum(status is Status.NOT_MEASURED for *_, status in verdicts):
        console.print(f"[dim]{left_out} targets were not measured.[/]")
    other_share = median([run.noise.other_share + run.noise.steal_share for run in results.runs]) or 0.0
    if other_share > _BUSY_SHARE:
        console.print(f"[yellow]Other work used {other_share:.0%} of the CPU: compare ratios, not single values.[/]")
    written = f"Wrote {output / 'results.md'} and {len(plots)} plots."
    console.print(written, highlight=False, soft_wrap=True)


def main() -> None:
    """Runs the program."""
    app()
