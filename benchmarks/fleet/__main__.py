"""`python -m benchmarks.fleet`, or `make fleet-proof`. Exit status 1 if a stream was cut or a request failed."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.fleet.chart import ChartError
from benchmarks.fleet.cpu_phase import CPU_SECONDS, cpu_replicas
from benchmarks.fleet.deployment import RolloutError
from benchmarks.fleet.phases import FULL, LENGTHS, Step
from benchmarks.fleet.report import read_proof, write_report
from benchmarks.fleet.results import Proof
from benchmarks.fleet.run import MODEL, Report, running_fleet
from benchmarks.fleet.texts import scripted_tasks
from benchmarks.systems.programs import ServerError
from benchmarks.systems.servers import build_benchmark_engine
from launcher.settings import REPOSITORY_ROOT

app = typer.Typer(add_completion=False)

_DOCS = REPOSITORY_ROOT / "docs" / "fleet"
_SCRATCH = REPOSITORY_ROOT / ".run" / "fleet"
_START_S = 15.0

Only = Annotated[list[str] | None, typer.Option("--only", help="Only phases with this name; repeatable.")]
Output = Annotated[Path | None, typer.Option(help="Output directory. Default: docs/fleet for a full run that passed.")]
Redraw = Annotated[
    Path | None,
    typer.Option(exists=True, dir_okay=False, help="Only write page and plot again, from this fleet.json."),
]


@app.command()
def fleet_proof(only: Only = None, output: Output = None, redraw: Redraw = None) -> None:
    """Replaces, removes, kills and scales replicas under load, by the chart's timings."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    console = Console()
    if redraw is not None:
        try:
            _write(console, read_proof(redraw), redraw.parent)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
        return
    steps = [step for step in FULL if not only or step.run.__name__ in only]
    has_cpu = not only or cpu_replicas.__name__ in only
    if not steps and not has_cpu:
        names = ", ".join([*(step.run.__name__ for step in FULL), cpu_replicas.__name__])
        raise typer.BadParameter(f"No phase has this name. There are: {names}.")
    total_s = sum(step.seconds for step in steps) + CPU_SECONDS * has_cpu + _START_S
    signal.signal(signal.SIGTERM, _interrupt)  # as Ctrl+C: the replicas are stopped, and what is done is reported
    proofs: list[Proof] = []
    problem: str | None = None
    try:
        # Redrawn once a second only: on a small machine, a bar takes time from what is measured.
        columns = (BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        with Progress(*columns, console=console, refresh_per_second=1, transient=True) as progress:
            task, started_s = progress.add_task("", total=total_s), time.monotonic()

            def report(name: str, _: float) -> None:
                progress.update(task, description=escape(name), completed=time.monotonic() - started_s)

            _run(steps, has_cpu, proofs, report, progress.console)
    except (ChartError, ServerError, RolloutError, KeyboardInterrupt) as error:
        problem = str(error) or "Interrupted; the phases so far are reported."
        console.print(f"[bold red]{escape(problem)}[/]", highlight=False)
    if not any(proof.phases for proof in proofs):
        raise typer.Exit(1)
    _finish(console, _joined(proofs), output, is_full=not only, is_whole=problem is None)


def _run(steps: Sequence[Step], has_cpu: bool, proofs: list[Proof], report: Report, console: Console) -> None:
    """Adds the results to `proofs` while they are made, so that those of an interrupted run are kept."""
    engine_dir = build_benchmark_engine(console)
    if steps:
        with running_fleet(engine_dir, "scripted", report) as fleet:
            proofs.append(fleet.proof)
            url = f"http://{fleet.deployment.ready[0].address}"
            fleet.tasks = scripted_tasks(engine_dir, url, MODEL, LENGTHS)
            for step in steps:
                step.run(fleet)
                _print_phase(console, fleet.proof)
    if has_cpu:
        proofs.append(cpu_replicas(engine_dir, report))
        _print_phase(console, proofs[-1])


def _finish(console: Console, proof: Proof, output: Path | None, *, is_full: bool, is_whole: bool) -> None:
    """Writes the report, prints the findings, and ends with status 1 if there are any."""
    found = proof.findings(is_full=is_full)
    is_published = is_full and is_whole and not found
    _write(console, proof, output or (_DOCS if is_published else _SCRATCH))
    for name, findings in found.items():
        for finding in findings:
            console.print(f"[bold red]FAILED[/] {escape(name)}: {escape(finding)}", highlight=False, soft_wrap=True)
    if found or not is_whole:
        raise typer.Exit(1)
    console.print(f"[bold green]Passed.[/] {proof.requests:,} requests.")


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _joined(proofs: list[Proof]) -> Proof:
    """The phases of all proofs as one. The plot is of the first."""
    first, *others = proofs
    for other in others:
        offset_s = first.phases[-1].ended_s if first.phases else 0.0
        for phase in other.phases:
            phase.started_s += offset_s
            phase.ended_s += offset_s
        first.phases += other.phases
    return first


def _write(console: Console, proof: Proof, folder: Path) -> None:
    for path in write_report(proof, folder):
        console.print(f"Wrote {path}", highlight=False)


def _print_phase(console: Console, proof: Proof) -> None:
    phase = proof.phases[-1]
    seen = phase.clients
    count = len(phase.findings())
    parts = [
        f"[dim]{escape(phase.name):24}[/]",
        f"{phase.ended_s - phase.started_s:4.0f} s",
        f"{seen.requests:6,} requests",
        f"{seen.retried:3} retried  {seen.refused} failed  {seen.broken:2} cut  {seen.wrong} wrong",
        f"TTFT {' / '.join(f'{value:,.0f}' for value in seen.ttft_ms.values())} ms",
        f"[red]{count} findings[/]" if count else "[green]passed[/]",
    ]
    console.print("  ".join(parts), highlight=False, soft_wrap=True)


if __name__ == "__main__":
    app()
