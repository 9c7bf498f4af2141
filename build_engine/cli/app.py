"""The program: its commands, and how it ends. Progress and messages go to stderr, results to stdout, so that `--json`
output can be piped.

Exit status: 0 done, 1 failed, 2 wrong usage, 3 refused before anything was started, 4 `verify` could not check all.
"""

from __future__ import annotations

import typer

from build_engine.cli import build as cli_build
from build_engine.cli import fleet as cli_fleet
from build_engine.cli import inspect as cli_verify
from build_engine.cli import tables
from build_engine.cli.options import ERR, OUT, Json
from build_engine.errors import BuildEngineError
from build_engine.targets.registry import TARGETS
from llm_pipeline.engine_files.manifest import ManifestError

app = typer.Typer(
    help="Turn a model file into an engine directory that the server loads. "
    "Exit status: 0 done, 1 failed, 2 wrong usage, 3 refused, 4 verify could not check everything.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(cli_build.build)
app.command()(cli_build.plan)
app.command()(cli_fleet.fleet)
app.command()(cli_verify.inspect)
app.command()(cli_verify.verify)


@app.command()
def targets(json: Json = False) -> None:
    """List what engines can be built for, and whether this machine can build them."""
    if json:
        OUT.print_json(data=tables.targets_json(TARGETS.values()))
    else:
        tables.print_targets(OUT, TARGETS.values())


def main() -> None:
    """Run a command; turns our errors into one line and an exit status."""
    try:
        app(prog_name="python -m build_engine")
    except BuildEngineError as error:
        _stop(str(error), error.exit_status)
    except ManifestError as error:
        _stop(str(error), 1)
    except OSError as error:  # a full disk, a directory that can't be written
        _stop(f"{error.strerror}: {error.filename}" if error.filename else str(error), 1)


def _stop(message: str, status: int) -> None:
    ERR.print(f"[bold red]error:[/] {tables.plain(message)}", soft_wrap=True, highlight=False)
    raise SystemExit(status)
