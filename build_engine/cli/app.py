"""The command line program and its exit status. Progress and messages go to stderr, results to stdout, so that the
output of `--json` can be piped.

Exit status: 0 done, 1 failed, 2 wrong usage, 3 refused before anything was started, 4 `verify` could not check all.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated

import typer

from build_engine.cli import tables
from build_engine.cli.build import build
from build_engine.cli.fleet import fleet
from build_engine.cli.inspect import inspect, verify
from build_engine.cli.options import ERR, OUT, Json
from build_engine.cli.plan import plan
from build_engine.errors import BuildEngineError
from build_engine.targets.nvml import Nvml
from build_engine.targets.registry import TARGETS
from llm_pipeline.engine_files.manifest import ManifestError

app = typer.Typer(
    help="Turn a model into an engine directory that the server loads. "
    "Exit status: 0 done, 1 failed, 2 wrong usage, 3 refused, 4 verify could not check everything.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (build, plan, fleet, inspect, verify):
    app.command()(command)


@app.command()
def targets(json: Json = False) -> None:
    """List the targets, and whether this machine can build for them."""
    if json:
        OUT.print_json(data=tables.targets_json(TARGETS.values()))
    else:
        tables.print_targets(OUT, TARGETS.values())


def _print_version(value: bool) -> None:
    if value:
        OUT.print(f"triton-completions {version('triton-completions')}", highlight=False)
        raise typer.Exit


@app.callback()
def options(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def main(
    arguments: Sequence[str] | None = None, nvml: Nvml | None = None, *, program: str = "python -m build_engine"
) -> None:
    """Runs one command; an expected error becomes one line and an exit status. Always raises SystemExit.

    `arguments` None: those of the process. `nvml` None: the driver of this machine.
    """
    try:
        app(args=arguments, prog_name=program, obj=nvml)
    except BuildEngineError as error:
        _exit(str(error), error.exit_status)
    except ManifestError as error:
        _exit(str(error), 1)
    except OSError as error:  # a full disk, a directory that can't be written
        _exit(f"{error.strerror}: {error.filename}" if error.filename else str(error), 1)


def _exit(message: str, status: int) -> None:
    ERR.print(f"[bold red]error:[/] {tables.plain(message)}", soft_wrap=True, highlight=False)
    raise SystemExit(status)
