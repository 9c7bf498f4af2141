"""The commands for a finished engine: `inspect` and `verify`."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from build_engine.artifact.checks import Outcome, verdict
from build_engine.cli import tables
from build_engine.cli.chart_values import chart_values
from build_engine.cli.manifest_tables import manifest_json, manifest_table
from build_engine.cli.options import ERR, GPU_PANEL, OUT, EngineDir, Json, nvml_of
from build_engine.cli.progress_bar import TerminalProgress
from build_engine.errors import BuildEngineError
from build_engine.gpu.verification.accuracy import Gate
from build_engine.gpu.verification.target_checks import AccuracyRequest
from build_engine.pytorch.verification.link_checks import link_sources, read_links
from build_engine.verification.verify import verify_on_target
from llm_pipeline.engine_files.manifest import EngineManifest, ManifestError

INCOMPLETE_STATUS = 4
_REBUILD = "Build it again: python -m build_engine build --force --output {directory}"
_REBUILD_GPU = "Build it again, with --force and the options in its build.json."
_INCOMPLETE = "Nothing failed, but not everything was checked. The table lists what is missing and what it needs."


def inspect(
    engine_dir: EngineDir,
    json: Json = False,
    as_chart_values: Annotated[
        bool, typer.Option("--chart-values", help="Print the values of the Helm chart that follow from the manifest.")
    ] = False,
) -> None:
    """Show the manifest of an engine: its model, runtime, target, limits, links and files."""
    manifest = EngineManifest.load(engine_dir)
    if as_chart_values:
        OUT.print_json(data=chart_values(engine_dir, manifest))
    elif json:
        OUT.print_json(data=manifest_json(manifest, engine_dir))
    else:
        OUT.print(manifest_table(manifest, engine_dir))


def verify(
    context: typer.Context,
    engine_dir: EngineDir,
    model: Annotated[
        Path | None,
        typer.Option(
            help="The checkpoint that the engine was built from; without it accuracy is not checked.",
            show_default=False,
            rich_help_panel=GPU_PANEL,
        ),
    ] = None,
    gate: Annotated[
        Gate,
        typer.Option(
            help="agreement: greedy tokens before the first difference. perplexity: of sample texts.",
            rich_help_panel=GPU_PANEL,
        ),
    ] = Gate.AGREEMENT,
    threshold: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Minimum agreement (0 to 1), or maximum perplexity as a multiple of the checkpoint's.",
            show_default="the precision's, see docs/engine-pipeline.md",
            rich_help_panel=GPU_PANEL,
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Check an engine: files, tokenizer, limits, generation, reference tokens or accuracy.

    Exit status: 0 all checks passed, 1 one failed, 4 none failed, but this machine could not check everything.
    """
    accuracy = AccuracyRequest(model, gate, threshold)
    with TerminalProgress(ERR) as progress:
        checks = verify_on_target(engine_dir, accuracy, nvml_of(context), progress)
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
        return "The engine is valid."
    if outcome is Outcome.NOT_CHECKED:
        return _INCOMPLETE
    if place := _missing_place(engine_dir):
        return f"Mount the model at {place}, or build it again: with --copy the directory does not depend on links."
    is_gpu = (engine_dir / "build.json").exists()
    return _REBUILD_GPU if is_gpu else _REBUILD.format(directory=engine_dir)


def _missing_place(engine_dir: Path) -> str | None:
    """The directory that links lead to, if it is not there; None otherwise."""
    with suppress(ManifestError):
        sources = link_sources(read_links(engine_dir, EngineManifest.load(engine_dir)))
        return next((str(source) for source in sources if not source.exists()), None)
    return None
