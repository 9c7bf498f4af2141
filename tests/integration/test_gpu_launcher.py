"""The GPU launcher with real tritonservers. The scripted executor takes the place of TensorRT-LLM."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from launcher.gpu.launch import LaunchSettings, Mode, command
from launcher.gpu.server_group import DEAD_STUB_STATUS
from launcher.local import triton_wheel
from launcher.ports import free_ports
from launcher.settings import StackSettings
from launcher.stub_monitor import POLL_PERIOD_S
from llm_pipeline.engine_files.manifest import TOKENIZER_NAME
from llm_pipeline.protocol.executor_names import ExecutorName
from tests.fakes.installed import FAKES, write_script
from tests.fakes.model_directory import make_model_directory
from tests.fakes.tritonserver import write_llmapi_launch
from tests.support import namespaces, two_hosts
from tests.support.trtllm_engine import make_engine
from tests.support.waiting import wait_until

pytestmark = [
    pytest.mark.triton,
    pytest.mark.skipif(
        shutil.which("mpirun") is None, reason="no mpirun here; Debian, Ubuntu: apt-get install openmpi-bin"
    ),
]


@contextmanager
def real_servers(
    tmp_path: Path,
    engine_dir: Path,
    mode: Mode,
    ranks: int,
    *,
    executor: ExecutorName = "scripted",
    llmapi_launch: Path | None = None,
    **environment: str,
) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Yields the launcher's process and the HTTP port of rank 0. Triton's stubs run in tests/fakes."""
    http, grpc, metrics = free_ports(3)
    stack = StackSettings(executor=executor)
    server = {
        "TRITONSERVER": triton_wheel.tritonserver_command(stack, tmp_path)[0],
        "TRITON_BACKENDS": str(triton_wheel.prepare_backends(tmp_path / "run")),
        "TRITON_HTTP_PORT": str(http),
        "TRITON_GRPC_PORT": str(grpc),
        "TRITON_METRICS_PORT": str(metrics),
        "LAUNCH_MODE": mode,
        **({} if llmapi_launch is None else {"TRTLLM_LLMAPI_LAUNCH": str(llmapi_launch)}),
    }
    if executor == "scripted":  # decode reads the CPU engine's files, the launcher those of an engine for GPUs
        launched = make_engine(tmp_path / "engine")
        settings = LaunchSettings(engine_dir=launched, **{name.lower(): value for name, value in server.items()})  # type: ignore[arg-type]
        line = command(settings, mode, ranks)
        run = (
            "import sys; from launcher.gpu.server_group import ServerGroup; "
            f"sys.exit(ServerGroup({line!r}, is_mpirun={mode != 'single'}).run())"
        )
        program = ["-c", run]
    else:
        program = ["-m", "launcher.gpu"]
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    root["OMPI_MCA_oob_tcp_dynamic_ipv4_ports"] = "15000-15099"  # mpirun's own, which else may be one of the three
    log = tmp_path / "log"
    with (
        log.open("w") as output,
        subprocess.Popen(
            [sys.executable, *program],
            env={**triton_wheel.environment(stack, engine_dir), **server, **root, **environment},
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=FAKES,
        ) as process,
    ):
        try:
            wait_until(lambda: process.poll() is not None or is_ready(http), limit_s=60)
            yield process, http
        finally:
            process.terminate()
            process.wait(60)


def test_two_servers_start_as_ranks_and_only_rank_0_serves(tmp_path: Path, engine_dir: Path) -> None:
    with real_servers(tmp_path, engine_dir, "leader", 2) as (process, http):
        wait_until(lambda: count_stubs(process.pid) == 4, limit_s=60)  # three of rank 0, decode of rank 1
        body = json.dumps({"text_input": "hello", "max_tokens": 5}).encode()
        with urllib.request.urlopen(f"http://127.0.0.1:{http}/v2/models/ensemble/generate", body, 20) as response:
            assert json.load(response)["num_output_tokens"] == 5
    assert process.returncode == 0, (tmp_path / "log").read_text()


def test_two_servers_start_as_ranks_on_two_hosts_and_end_with_the_stub_of_one(tmp_path: Path, engine_dir: Path) -> None:
    """A real sshd and mpirun between network namespaces. The worker sees that the other host's decode has died."""
    if reason := two_hosts.reason_to_skip():
        pytest.skip(reason)
    stack = StackSettings(executor="scripted")
    settings = LaunchSettings(
        engine_dir=make_engine(tmp_path / "engine"),
        tritonserver=Path(triton_wheel.tritonserver_command(stack, tmp_path)[0]),
        triton_backends=triton_wheel.prepare_backends(tmp_path / "run"),
        mpirun_hosts=two_hosts.NAMES,
        ssh_keys=two_hosts.write_keys(tmp_path),
    )
    line = command(settings, "leader", 2)
    run = (
        "import sys; from launcher.gpu.hosts import HostSettings, await_hosts; "
        "from launcher.gpu.server_group import ServerGroup; "
        f"await_hosts({two_hosts.NAMES[1:]!r}, HostSettings()); "
        f"sys.exit(ServerGroup({line!r}, is_mpirun=True, spans_hosts=True).run())"
    )
    programs = {"worker": ["-m", "launcher.gpu", "--worker"], "leader": ["-c", run]}
    body = json.dumps({"text_input": "hello", "max_tokens": 5})
    url = "http://127.0.0.1:8000/v2/models/ensemble/generate"
    request = f"import urllib.request as r; print(r.urlopen({url!r}, {body.encode()!r}, 20).read().decode())"
    with namespaces.hosts(two_hosts.NAMES) as (first, second), ExitStack() as stack_of_processes:
        running = {}
        for role, host in (("worker", second), ("leader", first)):
            (tmp_path / role).mkdir()
            log = stack_of_processes.enter_context((tmp_path / f"log-{role}").open("w"))
            process = subprocess.Popen(
                host.command([sys.executable, *programs[role]]),
                env={
                    **triton_wheel.environment(stack, engine_dir),
                    "SSH_KEYS": str(tmp_path),
                    "TMPDIR": str(tmp_path / role),
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=FAKES,
            )
            running[role] = process
            stack_of_processes.callback(process.wait, 60)
            stack_of_processes.callback(process.terminate)
        wait_until(lambda: count_stubs(running["worker"].pid) == 1, limit_s=60, what="decode's stub on the second host")

        def answer() -> str:
            asked = first.command([sys.executable, "-c", request])
            return subprocess.run(asked, capture_output=True, text=True, timeout=30, check=False).stdout

        wait_until(lambda: '"num_output_tokens":5' in answer(), limit_s=60, what="rank 0 serves")
        time.sleep(3 * POLL_PERIOD_S)
        (stub,) = stubs_of(running["worker"].pid)
        stub.kill()
        killed_at = time.monotonic()
        assert running["leader"].wait(30) != 0
        wait_until(lambda: count_stubs(running["worker"].pid) == 0, limit_s=10)
        print(f"ended {time.monotonic() - killed_at:.1f} s after the death of the second host's stub")
        assert "'decode' has died (rank1)" in (tmp_path / "log-worker").read_text()


def test_server_whose_decode_has_died_ends_and_leaves_no_process(tmp_path: Path, engine_dir: Path) -> None:
    with real_servers(tmp_path, engine_dir, "single", 1) as (process, _http):
        time.sleep(2 * POLL_PERIOD_S)
        below = psutil.Process(process.pid).children(recursive=True)
        (stub,) = [child for child in below if any("/decode/1/model.py" in part for part in child.cmdline())]
        stub.kill()
        killed_at = time.monotonic()
        assert process.wait(60) == DEAD_STUB_STATUS
        print(f"ended {time.monotonic() - killed_at:.1f} s after the death of decode's stub")
        _gone, alive = psutil.wait_procs(below, timeout=10)
        assert not alive
    assert "'decode' has died (rank0)" in (tmp_path / "log").read_text()


# --- Model directories, whose runtime has processes of its own --------------------------------------------------------


@contextmanager
def pytorch_servers(
    tmp_path: Path, engine_dir: Path, mode: Mode = "single", **options: Any
) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Runs a model directory of two ranks on the stand-in, whose ranks stay when their leader dies."""
    sizes: dict[str, Any] = {"vocab_size": 49152, "max_seq_len": 8192, "max_batch_size": 64}
    make_model_directory(tmp_path / "model", tokenizer=engine_dir / TOKENIZER_NAME, tp=2, **sizes)
    script = write_script(tmp_path / "script.json", sms=[90, 90], steps_per_s=200, ranks_outlive=True)
    environment = {"ENGINE_DIR": str(tmp_path / "model"), "FAKE_TENSORRT_LLM": str(script), **options}
    with real_servers(tmp_path, engine_dir, mode, 2, executor="tensorrt_llm_pytorch", **environment) as both:
        yield both


def generated_tokens(http: int) -> int:
    body = json.dumps({"text_input": "hello", "max_tokens": 5}).encode()
    with urllib.request.urlopen(f"http://127.0.0.1:{http}/v2/models/ensemble/generate", body, 20) as response:
        return int(json.load(response)["num_output_tokens"])


MARKS = {"rank": "mpi4py.futures.server", "stub": "/decode/1/model.py"}


def victim_of(kind: str, below: list[psutil.Process]) -> psutil.Process:
    def is_wanted(child: psutil.Process) -> bool:
        if kind == "orted":
            return child.name() == "orted"
        return any(MARKS[kind] in part for part in child.cmdline())

    return next(filter(is_wanted, below))


@pytest.mark.parametrize("kind", ["rank", "stub"])
def test_death_of_a_rank_or_of_its_leader_ends_the_server_and_leaves_no_process(
    tmp_path: Path, engine_dir: Path, kind: str
) -> None:
    with pytorch_servers(tmp_path, engine_dir) as (process, http):
        assert generated_tokens(http) == 5
        time.sleep(2 * POLL_PERIOD_S)
        below = psutil.Process(process.pid).children(recursive=True)
        victim = victim_of(kind, below)
        if kind == "stub":
            victim_of("orted", below).kill()  # nothing connects the ranks with their leader any more
        victim.kill()
        killed_at = time.monotonic()
        # Triton aborts if its stub dies while it holds their mutex: boost's lock_exception, before the launcher looks.
        expected = {DEAD_STUB_STATUS} if kind == "rank" else {DEAD_STUB_STATUS, 128 + signal.SIGABRT}
        assert process.wait(60) in expected, (tmp_path / "log").read_text()
        print(f"ended {time.monotonic() - killed_at:.1f} s after the death of the {kind}")
        alive = [child for child in below if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
        assert not alive, (tmp_path / "log").read_text()


def test_drained_server_leaves_no_rank(tmp_path: Path, engine_dir: Path) -> None:
    with pytorch_servers(tmp_path, engine_dir) as (process, http):
        assert generated_tokens(http) == 5
        below = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        assert process.wait(60) == 0, (tmp_path / "log").read_text()
        assert not [child for child in below if child.is_running()]


def test_server_beside_the_ranks_of_several_machines_serves_and_ends_with_them(
    tmp_path: Path, engine_dir: Path
) -> None:
    options = {"llmapi_launch": write_llmapi_launch(tmp_path), "RECORDS": str(tmp_path)}
    with pytorch_servers(tmp_path, engine_dir, "multi-node", **options) as (process, http):
        assert generated_tokens(http) == 5, (tmp_path / "log").read_text()
        below = psutil.Process(process.pid).children(recursive=True)
        assert not [child for child in below if "mpi4py.futures.server" in child.cmdline()]
        process.terminate()
        assert process.wait(60) == 0, (tmp_path / "log").read_text()
        _gone, alive = psutil.wait_procs(below, timeout=5)
        assert not alive


def is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, ConnectionError):
        return False


def count_stubs(pid: int) -> int:
    """Counts the Python stubs among the descendants of a process."""
    return len(stubs_of(pid))


def stubs_of(pid: int) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if child.name().startswith("triton_python_b"):
                found.append(child)
    return found
