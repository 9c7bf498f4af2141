"""The `plan` command: what a GPU engine takes, worked out on any machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from build_engine.cli import plan_tables
from build_engine.cli.options import OUT, Json, known_target, nvml_of, with_gpu_options
from build_engine.errors import EngineRefusedError
from build_engine.gpu.planning.options import GpuOptions
from build_engine.gpu.planning.plan_json import plan_json, refused_json
from build_engine.gpu.planning.plan_request import plan_request
from build_engine.gpu.planning.planner import Plan, make_plan
from build_engine.targets.precisions import PrecisionName


@with_gpu_options
def plan(
    context: typer.Context,
    model: Annotated[Path, typer.Option(help="A Hugging Face model directory; only its config.json is read.")],
    target: Annotated[
        str, typer.Option(help="A GPU listed by `targets`, or auto: the GPU of this machine.", callback=known_target)
    ],
    options: GpuOptions,
    precision: Annotated[
        PrecisionName, typer.Option(help="Precision of the weights. auto: the best for the GPU.")
    ] = PrecisionName.AUTO,
    name: Annotated[str | None, typer.Option(help="The model's name.", show_default="the directory's")] = None,
    json: Json = False,
) -> None:
    """Plan a GPU engine without a GPU: its commands, its memory, or every reason why it can't be built.

    Exit status: 0 it can be built, 3 it can't.
    """
    try:
        request = plan_request(target, model, precision.value, name, options, nvml_of(context))
    except EngineRefusedError as error:
        if json:
            OUT.print_json(data=refused_json(str(error)))
        raise
    engine_plan = make_plan(request)
    print_plan(engine_plan, json)
    if not engine_plan.accepted:
        raise typer.Exit(EngineRefusedError.exit_status)


def print_plan(plan: Plan, json: bool) -> None:
    if json:
        OUT.print_json(data=plan_json(plan))
    else:
        plan_tables.print_plan(OUT, plan)
