"""`python -m launcher.gpu`: Triton for one engine of TensorRT-LLM, on as many GPUs as the engine was built for.

    single        one GPU: tritonserver itself
    leader        several: one mpirun with a tritonserver for each GPU. Rank 0 serves; the others load decode alone,
                  listen nowhere, and their executor works for rank 0's
    orchestrator  one tritonserver, whose executor spawns a worker for each GPU (MPI_Comm_spawn)

`--dry-run` prints the command; servers.py runs it. What makes tokens is llm_pipeline's executor. Not run on GPUs yet.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from launcher.gpu.server_group import RANK_ARGUMENT, ServerGroup
from launcher.settings import REPOSITORY_ROOT
from llm_pipeline.engine_files.manifest import ManifestError
from llm_pipeline.engine_files.trtllm_config import EngineConfig
from llm_pipeline.protocol.tensors import DECODE_MODEL
from llm_pipeline.runtime.program_settings import ProgramSettings

Mode = Literal["single", "leader", "orchestrator"]

# --bind-to none: mpirun's default gives each of two ranks one core, stubs included (measured with 4.1.4).
# --oversubscribe: mpirun refuses more ranks than cores; ours take a GPU each, and it does not count those.
# --tag-output: every line of log begins with its rank.
_MPIRUN_OPTIONS = ("--bind-to", "none", "--oversubscribe", "--tag-output")


class LaunchSettings(ProgramSettings):
    """Where the server is, what it serves, and on how many GPUs."""

    launch_mode: Literal["auto", "single", "leader", "orchestrator"] = Field(
        "auto", description="How Triton uses several GPUs; auto: single for an engine of one GPU, leader for more"
    )
    engine_dir: Path = Field(description="Engine directory made by build_engine")
    gpu_count: int | None = Field(
        None, ge=1, description="GPUs that this server has; when set, an engine for another number is refused"
    )
    model_repository: Path = Field(REPOSITORY_ROOT / "model_repository", description="Triton's model repository")
    tritonserver: Path = Field(Path("/opt/tritonserver/bin/tritonserver"), description="The server's program")
    triton_backends: Path | None = Field(None, description="Folder of Triton's backends; left out: the server's own")
    mpirun: str = Field("mpirun", description="Open MPI's mpirun, which starts a server for each GPU")
    triton_host: str = Field("127.0.0.1", description="Address that Triton listens on; it asks nobody for a key")
    triton_http_port: int = Field(8000, ge=1, le=65535, description="Port of Triton's HTTP service")
    triton_grpc_port: int = Field(8001, ge=1, le=65535, description="Port of Triton's gRPC service")
    triton_metrics_port: int = Field(8002, ge=1, le=65535, description="Port of Triton's own metrics")
    triton_exit_timeout_s: int = Field(
        30, ge=0, description="Seconds that Triton waits for running requests and its models after SIGTERM"
    )
    triton_stub_timeout_s: int = Field(
        300, ge=1, description="Seconds that the process of a Python model may take to connect to Triton"
    )


class LaunchError(Exception):
    """Engine, GPUs and mode do not go together, or a program is missing; the message says what to change."""


def read_world_size(engine_dir: Path) -> int:
    """GPUs that the engine was built for. LaunchError when its files are not all there or contradict each other."""
    try:
        product = EngineConfig.load(engine_dir).world_size
    except ManifestError as error:
        raise LaunchError(f"ENGINE_DIR: {error}") from error
    expected = {f"rank{rank}.engine" for rank in range(product)}
    found = {file.name for file in engine_dir.glob("rank*.engine")}
    if found != expected:
        raise LaunchError(
            f"The engine in {engine_dir} is for {product} GPUs, so it has rank0 to rank{product - 1}.engine. "
            f"Missing: {_listed(expected - found)}; not its own: {_listed(found - expected)}."
        )
    return product


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names)) or "none"


def choose_mode(settings: LaunchSettings, world_size: int) -> Mode:
    """The mode, with `auto` resolved. LaunchError when GPUs, engine and mode do not go together."""
    mode = settings.launch_mode
    if mode == "auto":
        mode = "single" if world_size == 1 else "leader"
    if mode == "single" and world_size > 1:
        raise LaunchError(f"The engine is for {world_size} GPUs, and LAUNCH_MODE=single is for one. Leave it out.")
    gpus = settings.gpu_count
    # The orchestrator's server may hold other engines too.
    if gpus is not None and (gpus < world_size if mode == "orchestrator" else gpus != world_size):
        raise LaunchError(
            f"The engine in {settings.engine_dir} was built for {world_size} GPUs, and this server has {gpus} "
            "(GPU_COUNT). Give it as many GPUs, or build an engine for them: --tp and --pp of build_engine."
        )
    return mode


def command(settings: LaunchSettings, mode: Mode, world_size: int) -> list[str]:
    """The whole command line."""
    if mode == "single":
        return _serving_rank(settings)
    if mode == "orchestrator":
        return [
            *(settings.mpirun, *_MPIRUN_OPTIONS),
            *("-x", "TRTLLM_PARALLEL_MODE=orchestrator"),  # decode reads it: llm_pipeline/runtime/settings.py
            *("-n", "1", *_serving_rank(settings)),
            # The GPUs' memory is the workers': as NVIDIA's launch_triton_server.py does it.
            "--pinned-memory-pool-byte-size=0",
            "--enable-peer-access=false",
            *(f"--cuda-memory-pool-byte-size={gpu}:0" for gpu in range(settings.gpu_count or world_size)),
        ]
    line = [settings.mpirun, *_MPIRUN_OPTIONS, "-n", "1", *_serving_rank(settings)]
    for rank in range(1, world_size):
        line += [":", "-n", "1", *_working_rank(settings, rank)]
    return line


def _serving_rank(settings: LaunchSettings) -> list[str]:
    """The server that clients talk to: every model, all endpoints."""
    return [
        *_any_rank(settings, 0),
        f"--http-address={settings.triton_host}",
        f"--http-port={settings.triton_http_port}",
        f"--grpc-address={settings.triton_host}",
        f"--grpc-port={settings.triton_grpc_port}",
        f"--metrics-address={settings.triton_host}",
        f"--metrics-port={settings.triton_metrics_port}",
    ]


def _working_rank(settings: LaunchSettings, rank: int) -> list[str]:
    """A server that only gives the executor of its rank a process to live in; its warnings are rank 0's again."""
    return [
        *_any_rank(settings, rank),
        "--model-control-mode=explicit",
        f"--load-model={DECODE_MODEL}",
        "--allow-http=false",
        "--allow-grpc=false",
        "--allow-metrics=false",
        "--log-info=false",
        "--log-warning=false",
    ]


def _any_rank(settings: LaunchSettings, rank: int) -> list[str]:
    backends = [] if settings.triton_backends is None else [f"--backend-directory={settings.triton_backends}"]
    return [
        str(settings.tritonserver),
        f"{RANK_ARGUMENT}{rank}",
        f"--model-repository={settings.model_repository}",
        *backends,
        "--disable-auto-complete-config",
        # The stubs of all ranks share /dev/shm and must not share names.
        f"--backend-config=python,shm-region-prefix-name=triton_completions_{settings.triton_grpc_port}_rank{rank}_",
        f"--backend-config=python,stub-timeout-seconds={settings.triton_stub_timeout_s}",
        f"--exit-timeout-secs={settings.triton_exit_timeout_s}",
    ]


def shown(line: Sequence[str]) -> str:
    """The command as a person would write it, one argument to a line; a shell can run it."""
    return " \\\n    ".join(shlex.quote(part) for part in line) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """The program; its exit status."""
    parser = argparse.ArgumentParser(prog="python -m launcher.gpu", description="Run Triton with one engine.")
    parser.add_argument("--dry-run", action="store_true", help="print the command and leave it at that")
    is_dry_run: bool = parser.parse_args(arguments).dry_run
    try:
        settings = LaunchSettings()
        world_size = read_world_size(settings.engine_dir)
        mode = choose_mode(settings, world_size)
        line = command(settings, mode, world_size)
        if is_dry_run:
            sys.stdout.write(shown(line))
            return 0
        return _run(line, mode)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, item['loc'])).upper()}: {item['msg']}" for item in error.errors()]
        sys.stderr.write("Not started. The settings are not usable:\n" + "\n".join(problems) + "\n")
        return 2
    except LaunchError as error:
        sys.stderr.write(f"Not started. {error}\n")
        return 1


def _run(line: Sequence[str], mode: Mode) -> int:
    try:
        return ServerGroup(line, is_mpirun=mode != "single").run()
    except OSError as error:
        setting = "TRITONSERVER" if mode == "single" else "MPIRUN"
        raise LaunchError(f"{line[0]} can't be run ({setting}): {error.strerror}.") from error
