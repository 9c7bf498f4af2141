"""What several commands share: their options, and the terminal. None stands for the default that the help names."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from build_engine.gpu.planning.calibration import FETCHED, TEXT_COLUMN
from build_engine.gpu.planning.planner import DEFAULT_MAX_BATCH_SIZE, DEFAULT_MAX_NUM_TOKENS, DEFAULT_MAX_SEQ_LEN
from build_engine.targets.precisions import KvPrecisionName

GPU_PANEL = "Engines for GPUs"
OUT = Console()
ERR = Console(stderr=True)


def _gpu_option(
    help_text: str, *names: str, least: int | None = None, default: str | None = None
) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(
        *names, help=help_text, min=least, show_default=default or True, rich_help_panel=GPU_PANEL
    )
    return option


EngineDir = Annotated[Path, typer.Argument(help="The engine directory.", metavar="DIR")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
KvPrecision = Annotated[KvPrecisionName, _gpu_option("fp16: 16 bits, in the data type of the model.")]
Tp = Annotated[int, _gpu_option("GPUs that share each layer.", least=1)]
Pp = Annotated[int, _gpu_option("Groups of GPUs that share out the layers.", least=1)]
MaxBatch = Annotated[
    int | None, _gpu_option("Requests at once.", least=1, default=f"what fits, at most {DEFAULT_MAX_BATCH_SIZE}")
]
MaxSeqLen = Annotated[
    int | None,
    _gpu_option("Tokens of prompt and completion.", least=1, default=f"the model's, at most {DEFAULT_MAX_SEQ_LEN}"),
]
MaxTokens = Annotated[int | None, _gpu_option("Tokens of a step.", least=1, default=str(DEFAULT_MAX_NUM_TOKENS))]
Calibration = Annotated[
    str,
    _gpu_option(
        f"For precisions that need text: a directory with a train.jsonl of {TEXT_COLUMN!r} lines, or one of "
        f"{', '.join(FETCHED)}, which are fetched."
    ),
]
RuntimeGib = Annotated[
    float,
    typer.Option(
        min=0,
        max=64,
        help="Assumed: GiB of each GPU for CUDA and TensorRT. NVIDIA's sizing tool measured 0.54 and takes 3.5.",
        rich_help_panel=GPU_PANEL,
    ),
]
KvFraction = Annotated[
    float,
    typer.Option(
        "--kv-cache-fraction",
        min=0.05,
        max=0.99,
        help="Share of the memory left that becomes KV cache; serve with the same TRTLLM_KV_CACHE_FREE_FRACTION.",
        rich_help_panel=GPU_PANEL,
    ),
]
TrtllmVersion = Annotated[str, _gpu_option("The version that builds and serves.", "--tensorrt-llm")]
LoadTest = Annotated[
    bool,
    typer.Option(
        "--load-test/--no-load-test",
        help="Load the new engine and generate, where this machine has its GPUs, before it is published.",
        rich_help_panel=GPU_PANEL,
    ),
]
Root = Annotated[Path, _gpu_option("The folder of all engines.")]
