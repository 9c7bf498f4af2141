"""`python -m benchmarks.siege`, or `make siege`. Exit status 1 if the probe felt a hostile client."""

from __future__ import annotations

import logging
import signal
from pathlib import Path

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from benchmarks.siege import options
from benchmarks.siege.attacks.attack import Attack
from benchmarks.siege.attacks.registry import ATTACKS, find_attacks
from benchmarks.siege.phases import plan
from benchmarks.siege.report import P99s, read_p99s, read_siege, write_report
from benchmarks.siege.results import PhaseResult, Siege, findings
from benchmarks.siege.run import run_siege
from launcher.local.errors import PreflightError, StartError
from launcher.settings import REPOSITORY_ROOT

app = typer.Typer(add_completion=False)

_DOCS = REPOSITORY_ROOT / "docs" / "reliability"
_BEFORE = _DOCS / "siege-before.json"
_SCRATCH = REPOSITORY_ROOT / ".run" / "siege"


@app.command()
def siege(
    quick: options.Quick = False,
    minutes: options.Minutes = None,
    only: options.Only = None,
    guides: options.Guides = 0,
    seed: options.Seed = 1,
    memory_limit_mib: options.MemoryLimit = 8000.0,
    output: options.Output = None,
    before: options.Before = None,
    executor: options.Executor = "cpu",
    redraw: options.Redraw = None,
    listed: options.Listed = False,
) -> None:
    """Measures an honest client beside each kind of hostile client, on a stack of its own."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    console = Console()
    if listed:
        _list_attacks(console)
        return
    if redraw is not None:
        _write(console, _read(redraw), redraw.parent, None if before is None else _read_p99s(before))
        return
    attacks, p99s = _chosen(only or [], before or (_BEFORE if _BEFORE.exists() else None), executor)
    phases = plan(attacks, minutes or (options.QUICK_MINUTES if quick else options.FULL_MINUTES), guides)
    is_full = not (quick or minutes or only) and executor == "cpu"
    folder: Path = output or (_DOCS if is_full else _SCRATCH)
    done: Siege | None = None
    is_whole = True

    def on_result(so_far: Siege, result: PhaseResult) -> None:
        nonlocal done
        done = so_far
        progress.console.print(_line(result, so_far.quiet), highlight=False, soft_wrap=True)

    signal.signal(signal.SIGTERM, _interrupt)  # as Ctrl+C: the stack is stopped, and what is done is reported
    try:
        # Redrawn twice a second only: on a small machine, a bar takes time from what is measured.
        with Progress(*_columns(), console=console, refresh_per_second=2, transient=True) as progress:
            task = progress.add_task("", total=sum(phase.seconds for phase in phases))
            run_siege(
                phases,
                seed=seed,
                memory_limit_mib=memory_limit_mib,
                executor=executor,
                console=Console(quiet=True),
                on_progress=lambda text, s: progress.update(task, description=escape(text), completed=s),
                on_result=on_result,
            )
    except (PreflightError, StartError) as error:
        console.print(f"[bold red]{escape(str(error))}[/]", highlight=False)
        is_whole = False
    except KeyboardInterrupt:
        console.print("Interrupted; the phases so far are reported.")
        is_whole = False
    if done is None:
        raise typer.Exit(1)
    if not is_whole and output is None:
        folder = _SCRATCH  # the published result is one of a whole run
    _write(console, done, folder, p99s)
    _exit_with_verdict(console, done, is_whole=is_whole)


def _columns() -> tuple[ProgressColumn, ...]:
    return BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), TimeRemainingColumn()


def _list_attacks(console: Console) -> None:
    for attack in ATTACKS.values():
        console.print(f"{escape(attack.name):32} {escape(attack.line)}", highlight=False, soft_wrap=True)


def _chosen(names: list[str], before: Path | None, executor: str) -> tuple[list[Attack], P99s | None]:
    try:
        attacks = find_attacks(names, has_guides=executor == "cpu")
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    return attacks, None if before is None else _read_p99s(before)


def _read_p99s(path: Path) -> P99s:
    try:
        return read_p99s(path)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _read(path: Path) -> Siege:
    try:
        return read_siege(path)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _write(console: Console, siege: Siege, folder: Path, before: P99s | None) -> None:
    for path in write_report(siege, folder, before):
        console.print(f"Wrote {path}", highlight=False)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _exit_with_verdict(console: Console, done: Siege, *, is_whole: bool) -> None:
    failed = done.findings()
    for name, found in failed.items():
        for finding in found:
            console.print(f"[bold red]FELT[/] {escape(name)}: {escape(finding)}", highlight=False, soft_wrap=True)
    if failed or not is_whole:
        raise typer.Exit(1)
    console.print("[bold green]Passed.[/] No client was felt by the probe.")


def _line(result: PhaseResult, quiet: PhaseResult) -> str:
    parts = [f"[dim]{escape(result.name):32}[/]"]
    for name, delay in result.delays.items():
        parts.append(f"{name} " + ("-" if delay is None else f"{delay.p50_ms:,.0f} / {delay.p99_ms:,.0f} ms"))
    parts.append(f"{result.resources.peak_memory_mib:,.0f} MiB")
    count = len(findings(result, quiet))
    parts.append(f"[red]{count} findings[/]" if count else "[green]passed[/]")
    return "  ".join(parts)


if __name__ == "__main__":
    app()
