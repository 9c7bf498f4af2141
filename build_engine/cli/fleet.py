"""The `fleet` command: builds the engines listed in one file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from build_engine.cli import fleet_tables
from build_engine.cli.options import ERR, OUT, Json, LoadTest, nvml_of
from build_engine.cli.progress_bar import TerminalProgress
from build_engine.fleet.file import read_fleet_file
from build_engine.fleet.jobs import make_jobs
from build_engine.fleet.runner import DEFAULT_PARALLEL, dry_run, exit_status, run_fleet


def fleet(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="A TOML file; docs/engine-pipeline.md has an example.", metavar="FILE")],
    only_plan: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be built and what is refused; build nothing.")
    ] = False,
    continue_on_error: Annotated[
        bool, typer.Option("--continue-on-error", help="After a failed build, continue with the next engine.")
    ] = False,
    jobs_at_once: Annotated[
        int,
        typer.Option(
            "--jobs", min=1, max=64, help="Model directories of the PyTorch runtime that are hashed and linked at once."
        ),
    ] = DEFAULT_PARALLEL,
    load_test: LoadTest = True,
    json: Json = False,
) -> None:
    """Build every engine of a file. Run it again to resume: valid engines are reused.

    Exit status: 0 every engine exists, 1 one failed, 3 none failed, but some are refused or need another machine.
    """
    jobs = make_jobs(read_fleet_file(file), nvml_of(context), with_smoke_test=load_test)
    fleet_tables.print_refusals(ERR, jobs)
    if only_plan:
        results = dry_run(jobs)
    else:
        with TerminalProgress(ERR) as progress:
            results = run_fleet(jobs, progress, continue_on_error, jobs_at_once)
    if json:
        OUT.print_json(data=fleet_tables.results_json(results))
    else:
        fleet_tables.print_results(OUT, results)
    if status := exit_status(results):
        raise typer.Exit(status)
