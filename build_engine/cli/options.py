"""Options and consoles shared by several commands, and the context that a caller passes to them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer
from rich.console import Console

from build_engine.errors import EngineRefusedError
from build_engine.gpu.installation import installed_release
from build_engine.gpu.planning.calibration import DOWNLOADED_DATASETS, TEXT_COLUMN
from build_engine.gpu.planning.options import DEFAULT_TRTLLM, GpuOptions
from build_engine.gpu.planning.planner import DEFAULT_MAX_BATCH_SIZE, DEFAULT_MAX_NUM_TOKENS, DEFAULT_MAX_SEQ_LEN
from build_engine.planning.runtimes import Runtime
from build_engine.targets.nvml import Nvml, PynvmlNvml
from build_engine.targets.registry import AUTO, find_target

GPU_PANEL = "GPU engines"
OUT = Console()
ERR = Console(stderr=True)

EngineDir = Annotated[Path, typer.Argument(help="The engine directory.", metavar="DIR")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
LoadTest = Annotated[
    bool,
    typer.Option(
        "--load-test/--no-load-test",
        help="Load the new engine and generate with it before it is published, if this machine has its GPUs.",
        rich_help_panel=GPU_PANEL,
    ),
]
RuntimeOption = Annotated[
    Runtime,
    typer.Option(
        help="TensorRT-LLM's runtime. auto: an engine if the release builds engines and the model can be converted, "
        "else pytorch, which loads the model directory.",
        rich_help_panel=GPU_PANEL,
    ),
]


def known_target(name: str) -> str:
    """Returns the name of a target. Raises typer.BadParameter, wrong usage, for one that does not exist."""
    if name != AUTO:
        try:
            find_target(name)
        except EngineRefusedError as error:
            raise typer.BadParameter(str(error)) from error
    return name


def nvml_of(context: typer.Context) -> Nvml:
    """The driver of this machine, unless the caller of the program passed another one."""
    nvml: Nvml = context.obj or PynvmlNvml()
    return nvml


def _gpu_option(
    help_text: str, default: str | None = None, *, minimum: float | None = None, maximum: float | None = None
) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(
        help=help_text, show_default=default or True, rich_help_panel=GPU_PANEL, min=minimum, max=maximum
    )
    return option


# One entry per field of GpuOptions. The option's name and default are the field's.
_GPU_OPTIONS = {
    "kv_cache_precision": _gpu_option("fp16: 16 bits, in the data type of the model."),
    "tp": _gpu_option("Tensor parallelism: GPUs that share each layer.", minimum=1),
    "pp": _gpu_option("Pipeline parallelism: stages that the layers are divided into.", minimum=1),
    "ep": _gpu_option(
        "Expert parallelism: groups of the --tp GPUs that share out the experts. PyTorch runtime only.", minimum=1
    ),
    "max_batch_size": _gpu_option(
        "Maximum number of concurrent requests.", f"the largest that fits, at most {DEFAULT_MAX_BATCH_SIZE}", minimum=1
    ),
    "max_seq_len": _gpu_option(
        "Maximum tokens of prompt plus completion.", f"the model's, at most {DEFAULT_MAX_SEQ_LEN}", minimum=1
    ),
    "max_num_tokens": _gpu_option("Maximum tokens of one step.", str(DEFAULT_MAX_NUM_TOKENS), minimum=1),
    "calibration": _gpu_option(
        f"Texts for precisions that are calibrated: a directory with a train.jsonl of {TEXT_COLUMN!r} lines, or one of "
        f"{', '.join(DOWNLOADED_DATASETS)}, which are downloaded."
    ),
    "root": _gpu_option("The directory of all engines."),
    "tensorrt_llm": _gpu_option(
        "The TensorRT-LLM version that builds and serves the model.",
        f"the one installed here, else {DEFAULT_TRTLLM}",
    ),
    "runtime_gib": _gpu_option(
        "Assumed: GiB of each GPU for CUDA and TensorRT. NVIDIA's sizing tool measured 0.54 and uses 3.5.",
        minimum=0,
        maximum=64,
    ),
    "kv_cache_fraction": _gpu_option(
        "Fraction of the remaining memory used for the KV cache; serve with the same TRTLLM_KV_CACHE_FREE_FRACTION.",
        minimum=0.05,
        maximum=0.99,
    ),
}


def _for_installed_release(context: typer.Context | None, options: GpuOptions) -> GpuOptions:
    """The options with the release of TensorRT-LLM on this machine, unless --tensorrt-llm was given."""
    source = context.get_parameter_source("tensorrt_llm") if context else None
    if source is None or source.name != "DEFAULT":  # by name: typer has an enum of its own, or click's
        return options
    return replace(options, tensorrt_llm=installed_release() or DEFAULT_TRTLLM)


def with_gpu_options(command: Callable[..., None]) -> Callable[..., None]:
    """Replaces the parameter `options: GpuOptions` of a command by one command line option per field."""
    types = get_type_hints(GpuOptions)
    gpu_parameters = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=field.default,
            annotation=Annotated[types[field.name], _GPU_OPTIONS[field.name]],
        )
        for field in fields(GpuOptions)
    ]
    hints = get_type_hints(command, include_extras=True)
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        if name == "options":
            parameters += gpu_parameters
        else:
            kind = inspect.Parameter.KEYWORD_ONLY
            parameters.append(parameter.replace(annotation=hints[name], kind=kind))

    @functools.wraps(command)
    def with_fields(**values: Any) -> None:
        options = GpuOptions(**{field.name: values.pop(field.name) for field in fields(GpuOptions)})
        command(options=_for_installed_release(values.get("context"), options), **values)

    # typer reads both: the signature for names and defaults, the annotations for types.
    with_fields.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    with_fields.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return with_fields
