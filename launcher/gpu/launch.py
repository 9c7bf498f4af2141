"""Settings, launch modes and command lines of Triton for one TensorRT-LLM engine, on one or several GPUs.

    single        tritonserver itself: for an engine of one GPU, and for a model directory of any number, whose
                  PyTorch runtime spawns its ranks itself
    leader        one mpirun with a tritonserver for each GPU. Rank 0 serves; the others load only decode, listen on no
                  port, and their executors work for that of rank 0
    orchestrator  one tritonserver, whose executor spawns a worker for each GPU of an engine (MPI_Comm_spawn)
    multi-node    a model directory on several machines: an mpirun over their GPUs with NVIDIA's trtllm-llmapi-launch,
                  which runs the one tritonserver beside rank 0, and waits for its work in the others

With several hosts (hosts.py), leader and multi-node start their ranks there by ssh, an equal number on each, and the
first host serves. `--dry-run` prints the command; server_group.py runs it. Not run on GPUs yet.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from launcher.gpu.hosts import HostSettings, await_hosts, hosts_of, memlock_warning, ssh_options
from launcher.gpu.served_engine import LaunchError, ServedEngine, read_engine
from launcher.gpu.server_group import RANK_ARGUMENT, SERVE_ARGUMENTS, ServerGroup
from launcher.gpu.worker import Worker, WorkerSettings
from launcher.settings import MODEL_REPOSITORY, OpenApis
from launcher.triton_access import closing_arguments, inference_arguments
from launcher.triton_tracing import trace_arguments
from llm_pipeline.protocol.tensors import DECODE_MODEL
from llm_pipeline.runtime.program_settings import HeaderSecret
from llm_pipeline.runtime.tracing_settings import TracingSettings

Mode = Literal["single", "leader", "orchestrator", "multi-node"]

# --bind-to none: mpirun's default pins each of two ranks, stubs included, to one core (measured with 4.1.4).
# --oversubscribe: mpirun refuses more ranks than cores; ours use a GPU each, which it does not count.
# --tag-output: every log line begins with its rank.
_MPIRUN_OPTIONS = ("--bind-to", "none", "--oversubscribe", "--tag-output")


class LaunchSettings(HostSettings):
    """Where the server is, what it serves, and on how many GPUs."""

    launch_mode: Literal["auto", "single", "leader", "orchestrator", "multi-node"] = Field(
        "auto",
        description="How Triton uses several GPUs. auto: leader for an engine of several GPUs, otherwise single",
    )
    engine_dir: Path = Field(description="Engine directory made by build_engine")
    gpu_count: int | None = Field(
        None, ge=1, description="Number of GPUs in this server. If set, an engine for another number is rejected"
    )
    model_repository: Path = Field(MODEL_REPOSITORY, description="Triton's model repository")
    tritonserver: Path = Field(
        Path("/opt/tritonserver/bin/tritonserver"), description="Path of the tritonserver executable"
    )
    triton_backends: Path | None = Field(None, description="Directory of Triton's backends. Unset: the server's own")
    mpirun: str = Field("mpirun", description="Open MPI's mpirun program, which starts a server for each GPU")
    mpirun_hostfile: Path | None = Field(
        None, description="multi-node: Open MPI's hostfile, with the machines and the number of GPUs (slots) of each"
    )
    trtllm_llmapi_launch: str = Field(
        "trtllm-llmapi-launch", description="multi-node: TensorRT-LLM's program of this name, on every machine"
    )
    triton_host: str = Field("127.0.0.1", description="Address that Triton listens on; see TRITON_SECRET")
    triton_http_port: int = Field(8000, ge=1, le=65535, description="Port of Triton's HTTP service")
    triton_grpc_port: int = Field(8001, ge=1, le=65535, description="Port of Triton's gRPC service")
    triton_metrics_port: int = Field(8002, ge=1, le=65535, description="Port of Triton's metrics")
    triton_metrics_host: str | None = Field(
        None, description="Address that Triton's metrics listen on. Unset: TRITON_HOST"
    )
    triton_secret: HeaderSecret | None = Field(
        None,
        description="If set, Triton's inference API needs this secret: the front end's TRITON_SECRET",
    )
    triton_open_apis: OpenApis = Field(
        (),
        description="Triton's management APIs that are open, comma separated: shared-memory, model-repository, trace, "
        "logging, statistics, model-config. Unset: none",
    )
    triton_exit_timeout_s: int = Field(
        30, ge=0, description="Seconds that Triton waits for running requests and for its models after SIGTERM"
    )
    triton_stub_timeout_s: int = Field(
        300, ge=1, description="Seconds that a Python model's process may take to connect to Triton"
    )


def choose_mode(settings: LaunchSettings, engine: ServedEngine) -> Mode:
    """Returns the mode, with `auto` resolved. Raises LaunchError if engine, GPUs and mode are incompatible."""
    mode, is_pytorch = settings.launch_mode, engine.runtime == "pytorch"
    hosts = hosts_of(settings)
    if mode == "auto" and hosts:
        mode = "multi-node" if is_pytorch else "leader"
    elif mode == "auto":
        mode = "single" if is_pytorch or engine.world_size == 1 else "leader"
    if hosts:
        _check_hosts(hosts, settings, mode, engine.world_size)
    if mode == "single" and engine.world_size > 1 and not is_pytorch:
        raise LaunchError(
            f"The engine is for {engine.world_size} GPUs; LAUNCH_MODE=single supports one. Unset LAUNCH_MODE."
        )
    if mode == "orchestrator" and is_pytorch:
        raise LaunchError(
            f"{settings.engine_dir} is a model directory, whose runtime starts its ranks itself; "
            "LAUNCH_MODE=orchestrator is for engines. Unset LAUNCH_MODE."
        )
    if mode == "multi-node":
        _check_multi_node(settings, engine)
    gpus, world_size = settings.gpu_count, engine.world_size
    if gpus is not None and not _fits(mode, gpus * (len(hosts) or 1), world_size):
        where = f"{len(hosts)} hosts have {gpus} each" if hosts else f"this server has {gpus}"
        raise LaunchError(
            f"The engine in {settings.engine_dir} was built for {world_size} GPUs; {where} (GPU_COUNT). "
            "Use the number of GPUs that the engine was built for, or build another engine with --tp and --pp."
        )
    return mode


def _fits(mode: Mode, gpus: int, world_size: int) -> bool:
    if mode == "multi-node":
        return True  # each machine has fewer
    if mode == "orchestrator":
        return gpus >= world_size  # its server may serve other engines too
    return gpus == world_size


def _check_hosts(hosts: Sequence[str], settings: LaunchSettings, mode: Mode, world_size: int) -> None:
    if mode not in ("leader", "multi-node"):
        raise LaunchError(f"LAUNCH_MODE={mode} uses one host, and {len(hosts)} are set. Unset LAUNCH_MODE.")
    if world_size % len(hosts):
        raise LaunchError(
            f"The {world_size} GPUs of {settings.engine_dir} cannot be shared equally by {len(hosts)} hosts."
        )
    if settings.mpirun_hostfile is not None:
        raise LaunchError("MPIRUN_HOSTFILE and MPIRUN_HOSTS (or LWS_GROUP_SIZE) are both set. Unset one.")


def _check_multi_node(settings: LaunchSettings, engine: ServedEngine) -> None:
    if engine.runtime != "pytorch":
        raise LaunchError(
            f"{settings.engine_dir} is a compiled engine; LAUNCH_MODE=multi-node is for model directories, which "
            "build_engine makes with --runtime pytorch."
        )


def command(settings: LaunchSettings, mode: Mode, world_size: int) -> list[str]:
    """Returns the command line of all servers."""
    if mode == "single":
        return _serving_rank(settings)
    hosts = hosts_of(settings)
    if mode == "multi-node":
        return [
            *(settings.mpirun, *_MPIRUN_OPTIONS, *_where(settings, hosts, world_size), "-n", str(world_size)),
            # It splits its arguments at spaces, and the server's contain a line break: triton_access.py.
            *(settings.trtllm_llmapi_launch, sys.executable, *SERVE_ARGUMENTS),
        ]
    if mode == "orchestrator":
        return [
            *(settings.mpirun, *_MPIRUN_OPTIONS),
            *("-x", "TRTLLM_PARALLEL_MODE=orchestrator"),  # decode reads it: llm_pipeline/runtime/settings.py
            *("-n", "1", *_serving_rank(settings)),
            # The workers need all GPU memory, so the server takes none: as in NVIDIA's launch_triton_server.py.
            "--pinned-memory-pool-byte-size=0",
            "--enable-peer-access=false",
            *(f"--cuda-memory-pool-byte-size={gpu}:0" for gpu in range(settings.gpu_count or world_size)),
        ]
    line = [settings.mpirun, *_MPIRUN_OPTIONS, *(ssh_options(settings) if hosts else ())]
    for rank in range(world_size):
        place = ["--host", hosts[rank * len(hosts) // world_size]] if hosts else []
        server = _working_rank(settings, rank) if rank else _serving_rank(settings)
        line += [*([":"] if rank else []), "-n", "1", *place, *server]
    return line


def _where(settings: LaunchSettings, hosts: Sequence[str], world_size: int) -> list[str]:
    """Returns mpirun's options for the machines of multi-node mode."""
    if hosts:
        slots = world_size // len(hosts)
        return [*ssh_options(settings), "--host", ",".join(f"{host}:{slots}" for host in hosts)]
    return [] if settings.mpirun_hostfile is None else ["--hostfile", str(settings.mpirun_hostfile)]


def _serving_rank(settings: LaunchSettings) -> list[str]:
    """Returns the arguments of the server that clients connect to: every model, all endpoints."""
    return [
        *_any_rank(settings, 0),
        f"--http-address={settings.triton_host}",
        f"--http-port={settings.triton_http_port}",
        f"--grpc-address={settings.triton_host}",
        f"--grpc-port={settings.triton_grpc_port}",
        f"--metrics-address={settings.triton_metrics_host or settings.triton_host}",
        f"--metrics-port={settings.triton_metrics_port}",
        *closing_arguments(settings.triton_open_apis),
        *(inference_arguments(settings.triton_secret.get_secret_value()) if settings.triton_secret else ()),
        *trace_arguments(TracingSettings()),
    ]


def _working_rank(settings: LaunchSettings, rank: int) -> list[str]:
    """Returns the arguments of a server that only hosts its rank's executor; its warnings would repeat rank 0's."""
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
        # The stubs of all ranks share /dev/shm, so their names must differ.
        f"--backend-config=python,shm-region-prefix-name=triton_completions_{settings.triton_grpc_port}_rank{rank}_",
        f"--backend-config=python,stub-timeout-seconds={settings.triton_stub_timeout_s}",
        f"--exit-timeout-secs={settings.triton_exit_timeout_s}",
    ]


def format_command(line: Sequence[str]) -> str:
    """Returns the command as shell input, one argument per line."""
    return " \\\n    ".join(shlex.quote(part) for part in line) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program and returns its exit status: 2 for invalid settings, 1 if Triton cannot be started."""
    parser = argparse.ArgumentParser(prog="python -m launcher.gpu", description="Run Triton with one engine.")
    parser.add_argument("--dry-run", action="store_true", help="print the command without running it")
    parser.add_argument(
        "--serve",
        action="store_true",
        help="become the server that clients connect to, as multi-node does beside rank 0",
    )
    parser.add_argument("--worker", action="store_true", help="run sshd for ranks that another host's mpirun starts")
    parser.add_argument("--hosts", metavar="HOST,HOST", help="hosts that share the ranks, this one first: MPIRUN_HOSTS")
    options = parser.parse_args(arguments)
    try:
        if options.worker:
            return _work()
        settings = LaunchSettings(**({"mpirun_hosts": options.hosts} if options.hosts else {}))
        engine = read_engine(settings.engine_dir)
        mode = choose_mode(settings, engine)
        line = command(settings, mode, engine.world_size)
        if options.serve:
            _become(_serving_rank(settings))
        if options.dry_run:
            sys.stdout.write(format_command(line))
            return 0
        if hosts := hosts_of(settings):
            sys.stderr.write(memlock_warning())
            _end_at_sigterm()
            await_hosts(hosts[1:], settings)
        return _run(line, mode, spans_hosts=bool(hosts))
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, item['loc'])).upper()}: {item['msg']}" for item in error.errors()]
        sys.stderr.write("Not started. Invalid settings:\n" + "\n".join(problems) + "\n")
        return 2
    except LaunchError as error:
        sys.stderr.write(f"Not started. {error}\n")
        return 1


def _become(line: list[str]) -> None:
    try:
        os.execv(line[0], line)
    except OSError as error:
        raise LaunchError(f"{line[0]} (TRITONSERVER) cannot be run: {error.strerror}.") from error


def _work() -> int:
    settings = WorkerSettings()
    try:
        return Worker(settings).run()
    except OSError as error:
        raise LaunchError(f"{settings.sshd} (SSHD) cannot be run: {error.strerror}.") from error


def _end_at_sigterm() -> None:
    """Process 1 of a container ignores signals without a handler, so its end would wait for the grace period."""
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))


def _run(line: Sequence[str], mode: Mode, *, spans_hosts: bool) -> int:
    try:
        group = ServerGroup(
            line, is_mpirun=mode != "single", is_multi_node=mode == "multi-node", spans_hosts=spans_hosts
        )
        return group.run()
    except OSError as error:
        setting = "TRITONSERVER" if mode == "single" else "MPIRUN"
        raise LaunchError(f"{line[0]} ({setting}) cannot be run: {error.strerror}.") from error
