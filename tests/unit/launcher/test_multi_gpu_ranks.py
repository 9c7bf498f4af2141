"""Leader and orchestrator mode under a real mpirun: what each rank gets, and how all of them end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from deadlines import DEADLINE_S, wait_until
from test_checks import free_ports
from test_multi_gpu import make_engine

from launcher import triton_server
from launcher.multi_gpu import LaunchSettings, command
from launcher.settings import StackSettings

pytestmark = pytest.mark.skipif(
    shutil.which("mpirun") is None, reason="no mpirun here; Debian, Ubuntu: apt-get install openmpi-bin"
)

# Says what it was given; drains for a while at SIGTERM, as Triton does; FAIL names the rank that fails by itself.
FAKE_TRITONSERVER = f"""#!{sys.executable} -u
import json, os, signal, sys, time
from pathlib import Path
rank = os.environ["OMPI_COMM_WORLD_RANK"]
here = Path(os.environ["RECORDS"])

def drain(number, frame):
    time.sleep(float(os.environ["DRAIN_S"]))
    (here / f"drained{{rank}}").touch()
    sys.exit(0)

signal.signal(signal.SIGTERM, drain)
names = ("OMPI_COMM_WORLD_SIZE", "TRTLLM_PARALLEL_MODE", "EXECUTOR")
seen = {{"argv": sys.argv, "cores": len(os.sched_getaffinity(0)), **{{name: os.environ.get(name) for name in names}}}}
draft = here / f"draft{{rank}}"
draft.write_text(json.dumps(seen))
draft.rename(here / f"rank{{rank}}.json")
print("rank", rank, "is up")
while os.environ.get("FAIL") != rank:
    time.sleep(0.05)
while not (here / "rank0.json").exists():
    time.sleep(0.05)
sys.exit(3)
"""


class Launched:
    """The launcher as a process, with an mpirun below it."""

    def __init__(self, process: subprocess.Popen[str], records: Path) -> None:
        self.process = process
        self._records = records

    def await_ranks(self, count: int) -> list[dict[str, Any]]:
        files = [self._records / f"rank{rank}.json" for rank in range(count)]
        wait_until(lambda: all(file.exists() for file in files))
        return [json.loads(file.read_text()) for file in files]

    def drained(self) -> list[str]:
        return sorted(path.name for path in self._records.glob("drained*"))


@contextmanager
def launched(tmp_path: Path, ranks: int = 2, drain_s: float = 0.0, **settings: str) -> Iterator[Launched]:
    server = tmp_path / "tritonserver"
    server.write_text(FAKE_TRITONSERVER)
    server.chmod(0o755)
    engine = make_engine(tmp_path / "engine", {"world_size": ranks, "tp_size": ranks}, ranks)
    environment = {
        **{name: value for name, value in os.environ.items() if name.lower() not in LaunchSettings.model_fields},
        "ENGINE_DIR": str(engine),
        "TRITONSERVER": str(server),
        "RECORDS": str(tmp_path),
        "DRAIN_S": str(drain_s),
        # mpirun refuses root otherwise; the image's user is not root.
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        **settings,
    }
    with subprocess.Popen(
        [sys.executable, "-m", "launcher.multi_gpu"], env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield Launched(process, tmp_path)
        finally:
            for _ in range(2):  # the second goes to mpirun, which ends what is left
                process.terminate()
            process.wait(DEADLINE_S)


@pytest.mark.parametrize("count", [2, 3])  # mpirun's own binding differs between them
def test_each_rank_gets_its_own_line_all_cores_and_the_settings(tmp_path: Path, count: int) -> None:
    with launched(tmp_path, ranks=count, EXECUTOR="tensorrt_llm") as running:
        ranks = running.await_ranks(count)
    for number, rank in enumerate(ranks):
        assert f"--id=rank{number}" in rank["argv"]
        assert ("--load-model=decode" in rank["argv"]) == (number > 0)
        assert rank["OMPI_COMM_WORLD_SIZE"] == str(count)
        assert rank["EXECUTOR"] == "tensorrt_llm"
        assert rank["cores"] == len(os.sched_getaffinity(0))


def test_every_line_of_log_says_its_rank(tmp_path: Path) -> None:
    with launched(tmp_path) as running:
        running.await_ranks(2)
        running.process.terminate()
        said, _ = running.process.communicate(timeout=DEADLINE_S)
    assert "[1,0]<stdout>:" in said
    assert "[1,1]<stdout>:" in said


def test_the_orchestrator_is_one_process_that_knows_it(tmp_path: Path) -> None:
    with launched(tmp_path, LAUNCH_MODE="orchestrator") as running:
        (rank,) = running.await_ranks(1)
    assert rank["TRTLLM_PARALLEL_MODE"] == "orchestrator"
    assert rank["OMPI_COMM_WORLD_SIZE"] == "1"
    assert not (tmp_path / "rank1.json").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_every_rank_drains_for_longer_than_mpirun_would_let_it(tmp_path: Path, number: signal.Signals) -> None:
    with launched(tmp_path, drain_s=3.0) as running:
        running.await_ranks(2)
        running.process.send_signal(number)
        assert running.process.wait(DEADLINE_S) == 0
    assert running.drained() == ["drained0", "drained1"]


def test_a_second_signal_ends_the_drain(tmp_path: Path) -> None:
    with launched(tmp_path, drain_s=60.0) as running:
        running.await_ranks(2)
        running.process.terminate()
        with pytest.raises(subprocess.TimeoutExpired):
            running.process.wait(1.0)  # the first one is being waited for
        running.process.terminate()
        assert running.process.wait(DEADLINE_S) != 0
    assert running.drained() == []


def test_a_rank_that_fails_ends_all_with_its_status(tmp_path: Path) -> None:
    """The container ends, and whoever runs it starts it again: an engine without one of its GPUs is none."""
    with launched(tmp_path, FAIL="1") as running:
        assert running.process.wait(DEADLINE_S) == 3


# --- Real servers ----------------------------------------------------------------------------------------------------


@pytest.mark.triton
def test_two_real_servers_come_up_as_ranks_and_only_the_first_serves(tmp_path: Path, engine_dir: Path) -> None:
    """The scripted executor takes the place of TensorRT-LLM's: the servers' side of leader mode is real."""
    http, grpc, metrics = free_ports(3)
    stack = StackSettings(executor="scripted")
    engine = make_engine(tmp_path / "engine")
    server = command(
        LaunchSettings(
            engine_dir=engine,
            tritonserver=Path(triton_server.command(stack, tmp_path)[0]),
            triton_backends=triton_server.prepare_backends(tmp_path / "run"),
            triton_http_port=http,
            triton_grpc_port=grpc,
            triton_metrics_port=metrics,
        ),
        "leader",
        2,
    )
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    run_ranks = f"import sys; from launcher.multi_gpu import Ranks; sys.exit(Ranks({server!r}).run())"
    with subprocess.Popen(
        [sys.executable, "-c", run_ranks],
        env={**triton_server.environment(stack, engine_dir), **root},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            wait_until(lambda: process.poll() is not None or is_ready(http), deadline_s=60)
            wait_until(lambda: count_stubs(process.pid) == 4, deadline_s=60)  # three of rank 0, decode of rank 1
            body = json.dumps({"text_input": "hello", "max_tokens": 5}).encode()
            with urllib.request.urlopen(f"http://127.0.0.1:{http}/v2/models/ensemble/generate", body, 20) as answer:
                assert json.load(answer)["num_output_tokens"] == 5
        finally:
            process.terminate()
            said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said


def is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, ConnectionError):
        return False


def count_stubs(pid: int) -> int:
    """Python stubs among the descendants of a process."""
    return sum(child.name().startswith("triton_python_b") for child in psutil.Process(pid).children(recursive=True))
