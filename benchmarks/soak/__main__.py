"""`python -m benchmarks.soak`, or `make soak SOAK_MINUTES=20`. Exit status 1 on growth or a wrong response."""

from __future__ import annotations

import logging
import sys

from rich.console import Console

from benchmarks.soak.report import write_report
from benchmarks.soak.run import soak
from benchmarks.soak.settings import SoakSettings


def main() -> int:
    """Runs the program and returns its exit status."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    console, settings = Console(), SoakSettings()
    run = soak(settings, console)
    for path in write_report(run, settings.output):
        console.print(f"Wrote {path}", highlight=False)
    findings = run.findings()
    for finding in findings:
        console.print(f"[bold red]FAILED[/] {finding}", highlight=False)
    if not findings:
        console.print("[bold green]Passed.[/] No growth, no wrong response, no request left in flight.")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
