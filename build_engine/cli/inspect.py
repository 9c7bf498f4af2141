"""The commands that look at a finished engine: `inspect` and `verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from build_engine.artifact.checks import Outcome, verdict
from build_engine.cli import tables
from build_engine.cli.options import ERR, GPU_PANEL, OUT, EngineDir, Json
from build_engine.cli.progress_bar import TerminalProgress
from build_engine.errors import BuildEngineError
from build_engine.gpu.verification.accuracy import Gate
from build_engine.gpu.verification.target_checks import AccuracyRequest
from build_engine.targets.nvml import PynvmlNvml
from build_engine.verification.verify import verify_on_target
from llm_pipeline.engine_files.manifest import EngineManifest

INCOMPLETE_STATUS = 4
_REBUILD = "Build it again: python -m build_engine build --force --output {directory}"
_REBUILD_GPU = "Build it again, with --force and the options that are in its build.json."
_INCOMPLETE = "Nothing failed, but not everything was checked: see above for what is missing and what it needs."


def inspect(engine_dir: EngineDir, json: Json = False) -> None:
    """Show what an engine is and what it was made from."""
    manifest = EngineManifest.load(engine_dir)
    if json:
        OUT.print_json(manifest.model_dump_json())
    else:
        OUT.print(tables.manifest_table(manifest, engine_dir))


def verify(
    engine_dir: EngineDir,
    model: Annotated[
        Path | None,
        typer.Option(
            help="The checkpoint that the engine was made from; without it accuracy is not checked.",
            show_default=False,
            rich_help_panel=GPU_PANEL,
        ),
    ] = None,
    gate: Annotated[
        Gate,
        typer.Option(
            help="agreement: greedy tokens before the first difference. perplexity: of a few texts.",
            rich_help_panel=GPU_PANEL,
        ),
    ] = Gate.AGREEMENT,
    threshold: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Least agreement (0 to 1), or most perplexity as a multiple of the source's.",
            show_default="the precision's, see docs/engine-pipeline.md",
            rich_help_panel=GPU_PANEL,
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Check an engine: files, tokenizer, limits, generation, known answers or accuracy.

    Exit status: 0 all is good, 1 something is not, 4 nothing failed but this machine could not check everything.
    """
    with TerminalProgress(ERR) as progress:
        checks = verify_on_target(engine_dir, AccuracyRequest(model, gate, threshold), PynvmlNvml(), progress)
    outcome = verdict(checks)
    if json:
        OUT.print_json(data=tables.checks_json(checks))
    else:
        OUT.print(tables.checks_table(checks))
        OUT.print(_conclusion(engine_dir, outcome), soft_wrap=True, markup=False)
    if outcome is not Outcome.PASSED:
        raise typer.Exit(BuildEngineError.exit_status if outcome is Outcome.FAILED else INCOMPLETE_STATUS)


def _conclusion(engine_dir: Path, outcome: Outcome) -> str:
    if outcome is Outcome.PASSED:
        return "The engine is good."
    if outcome is Outcome.NOT_CHECKED:
        return _INCOMPLETE
    is_gpu = (engine_dir / "build.json").exists()
    return _REBUILD_GPU if is_gpu else _REBUILD.format(directory=engine_dir)
