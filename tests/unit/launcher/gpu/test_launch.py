"""Command lines of Triton on one and several GPUs, and the combinations that are rejected."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from launcher.gpu.launch import LaunchSettings, Mode, choose_mode, main
from launcher.gpu.launch import command as full_command
from launcher.gpu.served_engine import LaunchError, ServedEngine, read_engine
from llm_pipeline.runtime.settings import PipelineSettings
from tests.fakes.gpu_engine import make_gpu_engine
from tests.fakes.model_directory import make_model_directory
from tests.support.trtllm_engine import MAPPING, make_engine


def make_settings(**changed: Any) -> LaunchSettings:
    places = {"engine_dir": Path("/engine"), "model_repository": Path("/models"), "tritonserver": Path("/tritonserver")}
    return LaunchSettings(**{**places, **changed})


def command(settings: LaunchSettings, mode: Mode, world_size: int) -> list[str]:
    """The command line without the arguments that close APIs, which contain a random value."""
    return [part for part in full_command(settings, mode, world_size) if "-restricted-" not in part]


# --- Command lines ---------------------------------------------------------------------------------------------------


def any_rank(rank: int) -> list[str]:
    return [
        "/tritonserver",
        f"--id=rank{rank}",
        "--model-repository=/models",
        "--disable-auto-complete-config",
        f"--backend-config=python,shm-region-prefix-name=triton_completions_8001_rank{rank}_",
        "--backend-config=python,stub-timeout-seconds=300",
        "--exit-timeout-secs=30",
    ]


SERVING = [
    *any_rank(0),
    "--http-address=127.0.0.1",
    "--http-port=8000",
    "--grpc-address=127.0.0.1",
    "--grpc-port=8001",
    "--metrics-address=127.0.0.1",
    "--metrics-port=8002",
]
WORKING = [
    "--model-control-mode=explicit",
    "--load-model=decode",
    "--allow-http=false",
    "--allow-grpc=false",
    "--allow-metrics=false",
    "--log-info=false",
    "--log-warning=false",
]
MPIRUN = ["mpirun", "--bind-to", "none", "--oversubscribe", "--tag-output"]


def test_single_mode_runs_tritonserver_itself() -> None:
    assert command(make_settings(), "single", 1) == SERVING


def test_leader_mode_runs_mpirun_with_a_context_for_each_rank() -> None:
    one, two = [*any_rank(1), *WORKING], [*any_rank(2), *WORKING]
    expected = [*MPIRUN, "-n", "1", *SERVING, ":", "-n", "1", *one, ":", "-n", "1", *two]
    assert command(make_settings(), "leader", 3) == expected


def test_orchestrator_mode_runs_one_server_that_leaves_gpu_memory_to_the_workers() -> None:
    assert command(make_settings(), "orchestrator", 2) == [
        *MPIRUN,
        "-x",
        "TRTLLM_PARALLEL_MODE=orchestrator",
        "-n",
        "1",
        *SERVING,
        "--pinned-memory-pool-byte-size=0",
        "--enable-peer-access=false",
        "--cuda-memory-pool-byte-size=0:0",
        "--cuda-memory-pool-byte-size=1:0",
    ]


def test_orchestrator_leaves_the_memory_of_every_gpu_to_the_workers() -> None:
    line = command(make_settings(gpu_count=4), "orchestrator", 2)
    assert [part for part in line if "cuda-memory-pool" in part][-1] == "--cuda-memory-pool-byte-size=3:0"


def test_decode_reads_the_variable_that_orchestrator_mode_sets() -> None:
    line = command(make_settings(), "orchestrator", 2)
    name, _, value = line[line.index("-x") + 1].partition("=")
    settings = PipelineSettings.model_validate({"engine_dir": Path("/engine"), name.lower(): value})
    assert getattr(settings, name.lower()) == "orchestrator"


def test_server_settings_reach_every_rank() -> None:
    changed = {
        "triton_backends": Path("/backends"),
        "triton_exit_timeout_s": 7,
        "triton_stub_timeout_s": 8,
        "triton_grpc_port": 9,
        "mpirun": "/opt/mpirun",
    }
    program, *line = command(make_settings(**changed), "leader", 2)
    assert program == "/opt/mpirun"
    for part in ("--backend-directory=/backends", "--exit-timeout-secs=7"):
        assert line.count(part) == 2
    assert line.count("--backend-config=python,stub-timeout-seconds=8") == 2
    prefixes = {part for part in line if "shm-region-prefix-name" in part}
    assert len(prefixes) == 2
    assert all("_9_rank" in prefix for prefix in prefixes)  # and two stacks on one machine differ too


def test_only_rank_0_listens() -> None:
    settings = make_settings(triton_host="0.0.0.0", triton_http_port=1, triton_grpc_port=2, triton_metrics_port=3)
    first, second = " ".join(command(settings, "leader", 2)).split(" : ")
    for service, port in (("http", 1), ("grpc", 2), ("metrics", 3)):
        assert f"--{service}-address=0.0.0.0 --{service}-port={port}" in first
        assert f"--{service}-" not in second


def test_multi_node_mode_starts_upstreams_launcher_for_each_gpu() -> None:
    """The server's arguments contain a line break, so that launcher gets a program that makes them."""
    settings = make_settings(mpirun_hostfile=Path("/hosts"), trtllm_llmapi_launch="launch")
    serving = ["launch", sys.executable, "-m", "launcher.gpu", "--serve"]
    assert command(settings, "multi-node", 16) == [*MPIRUN, "--hostfile", "/hosts", "-n", "16", *serving]


def test_no_setting_of_the_server_is_among_the_variables_that_upstreams_launcher_unsets() -> None:
    """tensorrt_llm/llmapi/trtllm-llmapi-launch at cbe4c0ae; the ranks of MPI are to be unset."""
    prefixes = [
        "OMPI_",
        "PMIX_",
        "PMI_",
        "SLURM_",
        "MPI_",
        "UCX_",
        "I_MPI_",
        "HYDRA_",
        "KMP_",
        "MPICH_",
        "MV2_",
        "CRAY_",
    ]
    names = {name.upper() for settings in (LaunchSettings, PipelineSettings) for name in settings.model_fields}
    unset = {name for name in names if name.startswith(tuple(prefixes))}
    assert unset == {"OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"}


@pytest.mark.parametrize(("mode", "ranks"), [("single", 1), ("leader", 2), ("orchestrator", 2)])
def test_management_apis_of_the_serving_rank_are_closed(mode: Mode, ranks: int) -> None:
    line = full_command(make_settings(triton_open_apis="trace, statistics"), mode, ranks)
    closed = "shared-memory,model-repository,logging,model-config"
    assert len([part for part in line if part.startswith(f"--http-restricted-api={closed}:")]) == 1
    assert len([part for part in line if part.startswith(f"--grpc-restricted-protocol={closed}:")]) == 1


def test_inference_needs_the_secret_that_is_set() -> None:
    line = full_command(make_settings(triton_secret="0123456789abcdef"), "single", 1)
    assert "--http-restricted-api=inference:triton-secret=0123456789abcdef" in line
    assert "--grpc-restricted-protocol=inference:triton-secret=0123456789abcdef" in line
    assert "inference" not in "".join(full_command(make_settings(), "single", 1))


@pytest.mark.parametrize("secret", ["short", "0123456789 abcdef", "0123456789abcdef,x"])
def test_secret_that_cannot_be_an_argument_is_refused(secret: str) -> None:
    with pytest.raises(ValidationError, match="triton_secret"):
        make_settings(triton_secret=secret)


def test_metrics_may_listen_on_another_address() -> None:
    line = command(make_settings(triton_host="10.0.0.1", triton_metrics_host="10.0.0.2"), "single", 1)
    assert "--metrics-address=10.0.0.2" in line
    assert "--http-address=10.0.0.1" in line


# --- Mode and GPUs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("requested", "world_size", "chosen"),
    [
        ("auto", 1, "single"),
        ("auto", 2, "leader"),
        ("single", 1, "single"),
        ("leader", 1, "leader"),
        ("leader", 4, "leader"),
        ("orchestrator", 1, "orchestrator"),
        ("orchestrator", 4, "orchestrator"),
    ],
)
def test_mode_follows_from_setting_and_engine(requested: str, world_size: int, chosen: Mode) -> None:
    assert choose_mode(make_settings(launch_mode=requested), ServedEngine(world_size)) == chosen


@pytest.mark.parametrize(
    ("requested", "world_size", "chosen"),
    [
        ("auto", 1, "single"),
        ("auto", 4, "single"),
        ("single", 4, "single"),
        ("leader", 4, "leader"),
        ("multi-node", 16, "multi-node"),
    ],
)
def test_ranks_of_a_model_directory_are_spawned_unless_mpirun_starts_them(
    requested: str, world_size: int, chosen: Mode
) -> None:
    settings = make_settings(launch_mode=requested, gpu_count=8 if chosen == "multi-node" else world_size)
    assert choose_mode(settings, ServedEngine(world_size, "pytorch")) == chosen


@pytest.mark.parametrize(
    ("mode", "runtime", "message"),
    [
        ("orchestrator", "pytorch", "is a model directory, whose runtime starts its ranks itself"),
        ("multi-node", "engine", "is a compiled engine; LAUNCH_MODE=multi-node is for model directories"),
    ],
)
def test_modes_of_the_other_runtime_are_rejected(mode: str, runtime: Any, message: str) -> None:
    with pytest.raises(LaunchError, match=message):
        choose_mode(make_settings(launch_mode=mode), ServedEngine(2, runtime))


def test_single_mode_rejects_an_engine_for_two_gpus() -> None:
    with pytest.raises(LaunchError, match="is for 2 GPUs; LAUNCH_MODE=single"):
        choose_mode(make_settings(launch_mode="single"), ServedEngine(2))


@pytest.mark.parametrize(
    ("mode", "world_size", "gpu_count", "is_fine"),
    [
        ("auto", 2, 2, True),
        ("auto", 2, 1, False),
        ("auto", 2, 4, False),
        ("auto", 1, 2, False),
        ("orchestrator", 2, 2, True),
        ("orchestrator", 2, 4, True),
        ("orchestrator", 2, 1, False),
    ],
)
def test_engine_for_another_number_of_gpus_is_rejected(
    mode: str, world_size: int, gpu_count: int, is_fine: bool
) -> None:
    settings = make_settings(launch_mode=mode, gpu_count=gpu_count)
    if is_fine:
        choose_mode(settings, ServedEngine(world_size))
        return
    with pytest.raises(LaunchError, match=rf"built for {world_size} GPUs; this server has {gpu_count} \(GPU_COUNT"):
        choose_mode(settings, ServedEngine(world_size))


# --- The engine ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mapping", "world_size"),
    [
        ({"world_size": 1}, 1),
        (MAPPING, 2),
        ({"world_size": 8, "tp_size": 4, "pp_size": 2}, 8),
        ({"world_size": 4, "tp_size": 2, "pp_size": 1, "cp_size": 2}, 4),
    ],
    ids=["no parallelism", "tp", "tp and pp", "tp and cp"],
)
def test_the_world_size_is_the_engines(tmp_path: Path, mapping: dict[str, int], world_size: int) -> None:
    assert read_engine(make_engine(tmp_path, mapping, ranks=world_size)) == ServedEngine(world_size)


@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (4, 1), (4, 2)])
def test_the_world_size_of_a_model_directory_is_the_manifests(tmp_path: Path, tp: int, pp: int) -> None:
    make_model_directory(tmp_path, tp=tp, pp=pp)
    assert read_engine(tmp_path) == ServedEngine(tp * pp, "pytorch")


def test_an_engine_with_a_manifest_is_an_engine(tmp_path: Path) -> None:
    make_gpu_engine(tmp_path, tp=2)
    assert read_engine(tmp_path) == ServedEngine(2, "engine")


def test_a_manifest_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    make_engine(tmp_path)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(LaunchError, match=r"ENGINE_DIR: .*can't be read as an engine manifest"):
        read_engine(tmp_path)


def test_an_engine_that_contradicts_itself_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match="world_size is 2, but tp 2 x pp 2 x cp 1 is 4"):
        read_engine(make_engine(tmp_path, {**MAPPING, "pp_size": 2}))


@pytest.mark.parametrize(
    ("ranks", "said"),
    [(1, r"Missing: rank1\.engine; unexpected: none"), (3, r"Missing: none; unexpected: rank2\.engine")],
)
def test_an_engine_without_exactly_its_ranks_is_refused(tmp_path: Path, ranks: int, said: str) -> None:
    with pytest.raises(LaunchError, match=said):
        read_engine(make_engine(tmp_path, ranks=ranks))


def test_a_directory_without_an_engine_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match=r"ENGINE_DIR: No TensorRT-LLM engine in .*: No such file"):
        read_engine(tmp_path)


@pytest.mark.parametrize("config", ["{}", "not json", '{"pretrained_config": {"mapping": {"tp_size": 0}}}'])
def test_a_config_that_trtllm_build_has_not_written_is_refused(tmp_path: Path, config: str) -> None:
    make_engine(tmp_path)
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(LaunchError, match="can't be read as a TensorRT-LLM engine's configuration"):
        read_engine(tmp_path)


# --- The program -----------------------------------------------------------------------------------------------------


def test_dry_run_prints_shell_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = make_engine(tmp_path / "an engine")
    monkeypatch.setenv("ENGINE_DIR", str(engine))
    monkeypatch.setenv("MODEL_REPOSITORY", "/my models")
    assert main(["--dry-run"]) == 0
    printed = capsys.readouterr().out
    settings = LaunchSettings(engine_dir=engine, model_repository=Path("/my models"))
    read = subprocess.run(["sh", "-c", f"printf '%s\\0' {printed}"], stdout=subprocess.PIPE, text=True, check=True)
    parts = read.stdout.removesuffix("\0").split("\0")
    assert [part for part in parts if "-restricted-" not in part] == command(settings, "leader", 2)
    assert len(parts) == len(full_command(settings, "leader", 2))


def test_serve_becomes_the_server(tmp_path: Path) -> None:
    make_model_directory(tmp_path / "engine", tp=2)
    server = tmp_path / "tritonserver"
    server.write_text(f"#!{sys.executable}\nimport os, sys\nprint(os.getpid(), *sys.argv[1:3])\n")
    server.chmod(0o755)
    environment = {**os.environ, "ENGINE_DIR": str(tmp_path / "engine"), "TRITONSERVER": str(server)}
    with subprocess.Popen(
        [sys.executable, "-m", "launcher.gpu", "--serve"], env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        output, _ = process.communicate(timeout=30)
    assert output.split()[:2] == [str(process.pid), "--id=rank0"]


def test_serve_reports_a_missing_server(tmp_path: Path) -> None:
    make_model_directory(tmp_path / "engine")
    environment = {**os.environ, "ENGINE_DIR": str(tmp_path / "engine"), "TRITONSERVER": str(tmp_path / "nothing")}
    run = subprocess.run(
        [sys.executable, "-m", "launcher.gpu", "--serve"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert run.returncode == 1
    assert "nothing (TRITONSERVER) cannot be run" in run.stderr


@pytest.mark.parametrize(("ranks", "setting"), [(1, "TRITONSERVER"), (2, "MPIRUN")])
def test_missing_program_is_reported_with_its_setting(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    ranks: int,
    setting: str,
) -> None:
    mapping = {"world_size": ranks, "tp_size": ranks}
    monkeypatch.setenv("ENGINE_DIR", str(make_engine(tmp_path / "engine", mapping, ranks)))
    monkeypatch.setenv(setting, str(tmp_path / "nothing"))
    monkeypatch.setattr("launcher.gpu.server_group.signal.signal", lambda *_arguments: None)
    assert main([]) == 1
    assert f"nothing ({setting}) cannot be run" in capsys.readouterr().err


def test_invalid_settings_are_reported_together(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LAUNCH_MODE", "both")
    assert main([]) == 2
    errors = capsys.readouterr().err
    assert "LAUNCH_MODE" in errors
    assert "ENGINE_DIR" in errors
