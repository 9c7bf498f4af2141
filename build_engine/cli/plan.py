"""The `plan` command: what a model needs on a GPU, worked out on any machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from build_engine.cli import plan_tables, pytorch_plan_tables
from build_engine.cli.options import OUT, Json, RuntimeOption, known_target, nvml_of, with_gpu_options
from build_engine.errors import EngineRefusedError
from build_engine.gpu.planning.options import GpuOptions
from build_engine.gpu.planning.plan_json import plan_json, refused_json
from build_engine.gpu.planning.plan_request import plan_request
from build_engine.gpu.planning.planner import Plan, make_plan
from build_engine.planning.runtimes import Runtime, RuntimeChoice, choose_runtime
from build_engine.pytorch.planning.plan import PyTorchPlan
from build_engine.pytorch.planning.plan_json import plan_json as pytorch_plan_json
from build_engine.pytorch.planning.plan_request import pytorch_plan_request
from build_engine.pytorch.planning.planner import plan_model
from build_engine.targets.nvml import Nvml
from build_engine.targets.precisions import PrecisionName


@with_gpu_options
def plan(
    context: typer.Context,
    model: Annotated[
        Path,
        typer.Option(
            help="A Hugging Face model directory: its config.json, and the headers of its weights if present."
        ),
    ],
    target: Annotated[
        str, typer.Option(help="A GPU listed by `targets`, or auto: the GPU of this machine.", callback=known_target)
    ],
    options: GpuOptions,
    runtime: RuntimeOption = Runtime.AUTO,
    precision: Annotated[
        PrecisionName,
        typer.Option(help="Precision of the weights. auto: the best for the GPU, or for PyTorch the checkpoint's."),
    ] = PrecisionName.AUTO,
    name: Annotated[str | None, typer.Option(help="The model's name.", show_default="the directory's")] = None,
    json: Json = False,
) -> None:
    """Plan for a GPU without a GPU: the memory, the commands, or every reason why the model can't be served.

    Exit status: 0 it can be served, 3 it can't.
    """
    try:
        choice = choose_runtime(runtime, model, options)
        made = _make(choice, target, model, precision.value, name, options, nvml_of(context))
    except EngineRefusedError as error:
        if json:
            OUT.print_json(data=refused_json(str(error)))
        raise
    print_plan(made, json, choice)
    if not made.accepted:
        raise typer.Exit(EngineRefusedError.exit_status)


def _make(
    choice: RuntimeChoice, target: str, model: Path, precision: str, name: str | None, options: GpuOptions, nvml: Nvml
) -> Plan | PyTorchPlan:
    if choice.runtime is Runtime.PYTORCH:
        return plan_model(pytorch_plan_request(target, model, precision, name, options, nvml))
    return make_plan(plan_request(target, model, precision, name, options, nvml))


def print_plan(plan: Plan | PyTorchPlan, json: bool, choice: RuntimeChoice | None = None) -> None:
    """`choice`: the reason for the runtime, if one was chosen."""
    if json:
        data = pytorch_plan_json(plan) if isinstance(plan, PyTorchPlan) else plan_json(plan)
        OUT.print_json(data=data | ({"runtime_reason": choice.reason} if choice else {}))
        return
    if choice:
        plan_tables.print_runtime(OUT, choice)
    if isinstance(plan, PyTorchPlan):
        pytorch_plan_tables.print_plan(OUT, plan)
    else:
        plan_tables.print_plan(OUT, plan)
