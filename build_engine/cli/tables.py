"""Output of the commands: rich tables, and plain data for --json."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from build_engine.artifact.checks import Check, Outcome, verdict
from build_engine.targets.gpus import GB
from build_engine.targets.registry import Target, availability

_WEIGHTS = ".safetensors"
_MOST_ROWS_OF_WEIGHTS = 4
_OUTCOMES = {
    Outcome.PASSED: "[green]pass[/]",
    Outcome.FAILED: "[bold red]FAIL[/]",
    Outcome.NOT_CHECKED: "[yellow]not checked[/]",
}


def plain(text: str) -> str:
    """`text` with rich markup escaped."""
    return escape(text)


def relative_to_cwd(path: Path) -> str:
    """Relative to the working directory if it is below it, else absolute."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def checks_json(checks: list[Check]) -> dict[str, Any]:
    return {
        "outcome": verdict(checks).value,
        "passed": verdict(checks) is Outcome.PASSED,
        "checks": [{"name": check.name, "outcome": check.outcome.value, "detail": check.detail} for check in checks],
    }


def checks_table(checks: list[Check]) -> Table:
    """One row per check, and one for all files of weights that have passed if there are many of them."""
    weights = [check for check in checks if check.outcome is Outcome.PASSED and check.name.endswith(_WEIGHTS)]
    if len(weights) > _MOST_ROWS_OF_WEIGHTS:
        joined = Check.of(f"{len(weights)} files *{_WEIGHTS}", True, "sizes and sha256 as in the manifest")
        checks = [joined if check is weights[0] else check for check in checks if check not in weights[1:]]
    table = Table("check", "", "detail")
    table.columns[0].overflow = table.columns[2].overflow = "fold"
    for check in checks:
        table.add_row(escape(check.name), _OUTCOMES[check.outcome], escape(check.detail))
    return table


def targets_json(targets: Iterable[Target]) -> list[dict[str, Any]]:
    availabilities = [(target, availability(target)) for target in targets]
    return [
        {
            "name": target.name,
            "kind": target.kind.value,
            "sm": target.gpu.sm if target.gpu else None,
            "memory_bytes": target.gpu.memory_bytes if target.gpu else None,
            "precisions": list(target.precisions),
            "works_here": here.works,
            "reason": here.reason,
        }
        for target, here in availabilities
    ]


def print_targets(console: Console, targets: Iterable[Target]) -> None:
    """Prints a table, and below it one reason per kind of target, since its targets share it."""
    availabilities = [(target, availability(target)) for target in targets]
    table = Table("target", "SM", "GB", "precisions, default first", "can build")
    for target, here in availabilities:
        sm, memory = (str(target.gpu.sm), f"{target.gpu.memory_bytes / GB:.0f}") if target.gpu else ("", "")
        works = "[green]yes[/]" if here.works else "[red]no[/]"
        table.add_row(target.name, sm, memory, ", ".join(target.precisions), works)
    console.print(table)
    for kind in dict.fromkeys(target.kind for target, _ in availabilities):
        reason = next(here.reason for target, here in availabilities if target.kind is kind)
        console.print(f"{kind.value}: {escape(reason)}", soft_wrap=True, highlight=False)
    console.print("For --runtime pytorch nothing is compiled: it can be built here for every GPU.", soft_wrap=True)
