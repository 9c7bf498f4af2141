"""Output of the `fleet` command: refusals before it starts, a table at the end, and plain data for --json."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from build_engine.cli.manifest_tables import format_size
from build_engine.cli.tables import relative_to_cwd
from build_engine.fleet.file import FleetEngine
from build_engine.fleet.jobs import Job
from build_engine.fleet.runner import FleetOutcome, FleetResult, exit_status
from build_engine.targets.registry import CPU

_TIMED = {FleetOutcome.BUILT, FleetOutcome.REUSED, FleetOutcome.FAILED}
_STYLES = {
    FleetOutcome.BUILT: "green",
    FleetOutcome.REUSED: "green",
    FleetOutcome.FAILED: "bold red",
    FleetOutcome.REFUSED: "red",
}


def print_refusals(console: Console, jobs: Sequence[Job]) -> None:
    """Printed before anything is built, so that a typing error does not surface after hours."""
    _print_reasons(console, "refused", [(job.engine, job.refusals) for job in jobs])


def print_results(console: Console, results: Sequence[FleetResult]) -> None:
    """Directories are relative to the root of all engines, so that they are short enough to read."""
    root = relative_to_cwd(results[0].engine.options.root.absolute())
    table = Table("engine", "", "time", "size", f"in {escape(root)}")
    table.columns[4].overflow = "fold"
    for result in results:
        style = _STYLES.get(result.outcome, "yellow")
        table.add_row(
            escape(result.engine.label),
            f"[{style}]{result.outcome.value}[/]",
            _duration(result.duration_s) if result.outcome in _TIMED else "",
            "" if result.size_bytes is None else format_size(result.size_bytes),
            escape(_below(result.engine_dir, result.engine.options.root)) if result.engine_dir else "",
        )
    console.print(table)
    for outcome in FleetOutcome:
        remaining = [result for result in results if result.outcome is outcome and not _is_already_printed(result)]
        _print_reasons(console, outcome.value, [(result.engine, result.reasons) for result in remaining])
    counts = Counter(result.outcome for result in results)
    console.print(", ".join(f"{counts[outcome]} {outcome.value}" for outcome in FleetOutcome if counts[outcome]))
    if counts[FleetOutcome.FAILED]:
        console.print("Fix the cause and run the same command again to resume; valid engines are reused.")


def _is_already_printed(result: FleetResult) -> bool:
    """Refused by its plan: print_refusals has printed the reason."""
    return result.outcome is FleetOutcome.REFUSED and result.engine_dir is None


def _below(engine_dir: Path, root: Path) -> str:
    path, base = engine_dir.absolute(), root.absolute()
    return str(path.relative_to(base)) if path.is_relative_to(base) else str(path)


def _print_reasons(console: Console, outcome: str, reasons: Iterable[tuple[FleetEngine, Sequence[str]]]) -> None:
    """Prints each reason once, after the engines that it applies to."""
    labels: dict[str, list[str]] = {}
    for engine, messages in reasons:
        for message in messages:
            labels.setdefault(message, []).append(engine.label)
    for message, affected in labels.items():
        text = f"[red]{outcome}:[/] {escape(', '.join(affected))}: {escape(message)}"
        console.print(text, soft_wrap=True, highlight=False)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes else f"{seconds:.1f} s"


def results_json(results: Sequence[FleetResult]) -> dict[str, Any]:
    return {
        "complete": exit_status(results) == 0,
        "engines": [
            {
                "entry": result.engine.entry,
                "model": str(result.engine.model),
                "target": result.engine.target,
                "runtime": CPU.name if result.engine.target == CPU.name else result.engine.runtime.value,
                "precision": result.engine.precision.value,
                "tp": result.engine.options.tp,
                "pp": result.engine.options.pp,
                "ep": result.engine.options.ep,
                "outcome": result.outcome.value,
                "engine_dir": str(result.engine_dir) if result.engine_dir else None,
                "size_bytes": result.size_bytes,
                "duration_s": round(result.duration_s, 3),
                "reasons": list(result.reasons),
            }
            for result in results
        ],
    }
