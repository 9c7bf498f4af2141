"""The GPU launcher with real tritonservers. The scripted executor takes the place of TensorRT-LLM."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from launcher.gpu.launch import LaunchSettings, Mode, command
from launcher.gpu.server_group import DEAD_STUB_STATUS
from launcher.local import triton_wheel
from launcher.ports import free_ports
from launcher.settings import StackSettings
from launcher.stub_monitor import POLL_PERIOD_S
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
    tmp_path: Path, engine_dir: Path, mode: Mode, ranks: int
) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Yields the launcher's process and the HTTP port of rank 0."""
    http, grpc, metrics = free_ports(3)
    stack = StackSettings(executor="scripted")
    line = command(
        LaunchSettings(
            engine_dir=make_engine(tmp_path / "engine"),
            tritonserver=Path(triton_wheel.tritonserver_command(stack, tmp_path)[0]),
            triton_backends=triton_wheel.prepare_backends(tmp_path / "run"),
            triton_http_port=http,
            triton_grpc_port=grpc,
            triton_metrics_port=metrics,
        ),
        mode,
        ranks,
    )
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    run = (
        "import sys; from launcher.gpu.server_group import ServerGroup; "
        f"sys.exit(ServerGroup({line!r}, is_mpirun={mode != 'single'}).run())"
    )
    log = tmp_path / "log"
    with (
        log.open("w") as output,
        subprocess.Popen(
            [sys.executable, "-c", run],
            env={**triton_wheel.environment(stack, engine_dir), **root},
            stdout=output,
            stderr=subprocess.STDOUT,
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


def is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, ConnectionError):
        return False


def count_stubs(pid: int) -> int:
    """Counts the Python stubs among the descendants of a process."""
    return sum(child.name().startswith("triton_python_b") for child in psutil.Process(pid).children(recursive=True))
