"""The servers of an engine, alone and under a real mpirun: what each gets, and how all of them end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from launcher.gpu.launch import LaunchSettings, Mode, command
from launcher.gpu.server_group import DEAD_STUB_STATUS
from launcher.local import triton_wheel as triton_server
from launcher.settings import StackSettings
from launcher.stub_monitor import PERIOD_S
from tests.support.waiting import DEADLINE_S, wait_until
from tests.unit.launcher.gpu.test_launch import make_engine
from tests.unit.launcher.local.test_preflight import free_ports

pytestmark = pytest.mark.skipif(
    shutil.which("mpirun") is None, reason="no mpirun here; Debian, Ubuntu: apt-get install openmpi-bin"
)

# Says what it was given; drains for a while at SIGTERM, as Triton does; FAIL names the rank that fails by itself.
# Starts the stubs of its models; REVIVES a dead one of decode.
FAKE_TRITONSERVER = f"""#!{sys.executable} -u
import json, os, signal, subprocess, sys, time
from pathlib import Path
rank = os.environ.get("OMPI_COMM_WORLD_RANK", "0")
here = Path(os.environ["RECORDS"])

def start_stub(model):
    return subprocess.Popen([str(here / "triton_python_backend_stub"), f"/models/{{model}}/1/model.py", "x"])

models = ["decode"] if int(rank) else ["preprocess", "decode", "postprocess"]
stubs = {{model: start_stub(model) for model in models}}

def drain(number, frame):
    for stub in stubs.values():
        stub.kill()
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
    if stubs["decode"].poll() is not None and "REVIVES" in os.environ:
        stubs["decode"] = start_stub("decode")
        (here / "revived").touch()
while not (here / "rank0.json").exists():
    time.sleep(0.05)
sys.exit(3)
"""

# Bears Triton's name for it, and ends with its server.
FAKE_STUB = f"""#!{sys.executable}
import os, time
server = os.getppid()
while os.getppid() == server:
    time.sleep(0.1)
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

    def kill_stub(self, model: str, rank: int) -> None:
        """Waits until it is there, and has been seen by whoever counts stubs."""
        time.sleep(2 * PERIOD_S)
        (stub,) = [
            child
            for child in psutil.Process(self.process.pid).children(recursive=True)
            if f"/models/{model}/1/model.py" in child.cmdline() and f"--id=rank{rank}" in child.parent().cmdline()
        ]
        stub.kill()


@contextmanager
def launched(tmp_path: Path, ranks: int = 2, drain_s: float = 0.0, **settings: str) -> Iterator[Launched]:
    server = tmp_path / "tritonserver"
    server.write_text(FAKE_TRITONSERVER)
    server.chmod(0o755)
    stub = tmp_path / "triton_python_backend_stub"
    stub.write_text(FAKE_STUB)
    stub.chmod(0o755)
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
        [sys.executable, "-m", "launcher.gpu"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
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


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_every_server_drains_for_longer_than_mpirun_would_let_it(
    tmp_path: Path, number: signal.Signals, ranks: int
) -> None:
    """Stubs that end meanwhile are no death: servers that end take them along."""
    with launched(tmp_path, ranks=ranks, drain_s=3.0) as running:
        running.await_ranks(ranks)
        running.process.send_signal(number)
        _, said = running.process.communicate(timeout=DEADLINE_S)
        assert running.process.returncode == 0
    assert running.drained() == [f"drained{rank}" for rank in range(ranks)]
    assert "has died" not in said


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_second_signal_ends_the_drain(tmp_path: Path, ranks: int) -> None:
    with launched(tmp_path, ranks=ranks, drain_s=60.0) as running:
        running.await_ranks(ranks)
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


@pytest.mark.parametrize(
    ("ranks", "mode", "victim"),
    [(1, "single", 0), (2, "leader", 0), (2, "leader", 1), (1, "orchestrator", 0)],
    ids=["single", "leader, rank 0", "leader, rank 1", "orchestrator"],
)
def test_a_dead_stub_ends_all_servers_with_a_status_and_one_line(
    tmp_path: Path, ranks: int, mode: str, victim: int
) -> None:
    """Triton does not start decode's again and calls itself ready; nobody else in the container would notice."""
    with launched(tmp_path, ranks=ranks, LAUNCH_MODE=mode) as running:
        running.await_ranks(ranks)
        running.kill_stub("decode", victim)
        _, said = running.process.communicate(timeout=DEADLINE_S)
    assert running.process.returncode == DEAD_STUB_STATUS
    assert [line for line in said.splitlines() if "has died" in line] == [
        f"The process of the model 'decode' has died (rank{victim}), and Triton does not start it again: ending all "
        "servers with status 70, to be started anew."
    ]
    assert running.drained() == [f"drained{rank}" for rank in range(ranks)]


def test_a_server_that_does_not_end_without_its_stub_is_killed(tmp_path: Path) -> None:
    with launched(tmp_path, ranks=1, drain_s=60.0) as running:
        running.await_ranks(1)
        running.kill_stub("decode", 0)
        assert running.process.wait(DEADLINE_S) == DEAD_STUB_STATUS
    assert running.drained() == []


def test_a_stub_that_triton_starts_again_is_no_death(tmp_path: Path) -> None:
    with launched(tmp_path, ranks=1, REVIVES="1") as running:
        running.await_ranks(1)
        running.kill_stub("decode", 0)
        wait_until((tmp_path / "revived").exists)
        with pytest.raises(subprocess.TimeoutExpired):
            running.process.wait(8 * PERIOD_S)  # longer than the patience with a stub that stays away


# --- Real servers ----------------------------------------------------------------------------------------------------


@contextmanager
def real_servers(tmp_path: Path, engine_dir: Path, mode: Mode, ranks: int) -> Iterator[tuple[Any, int]]:
    """The launcher's process and rank 0's HTTP port. The scripted executor takes the place of TensorRT-LLM's: the
    servers' side is real.
    """
    http, grpc, metrics = free_ports(3)
    stack = StackSettings(executor="scripted")
    line = command(
        LaunchSettings(
            engine_dir=make_engine(tmp_path / "engine"),
            tritonserver=Path(triton_server.command(stack, tmp_path)[0]),
            triton_backends=triton_server.prepare_backends(tmp_path / "run"),
            triton_http_port=http,
            triton_grpc_port=grpc,
            triton_metrics_port=metrics,
        ),
        mode,
        ranks,
    )
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    run = (
        "import sys; from launcher.gpu.server_group import Servers; "
        f"sys.exit(Servers({line!r}, is_mpirun={mode != 'single'}).run())"
    )
    log = tmp_path / "log"
    with (
        log.open("w") as output,
        subprocess.Popen(
            [sys.executable, "-c", run],
            env={**triton_server.environment(stack, engine_dir), **root},
            stdout=output,
            stderr=subprocess.STDOUT,
        ) as process,
    ):
        try:
            wait_until(lambda: process.poll() is not None or is_ready(http), deadline_s=60)
            yield process, http
        finally:
            process.terminate()
            process.wait(60)


@pytest.mark.triton
def test_two_real_servers_come_up_as_ranks_and_only_the_first_serves(tmp_path: Path, engine_dir: Path) -> None:
    with real_servers(tmp_path, engine_dir, "leader", 2) as (process, http):
        wait_until(lambda: count_stubs(process.pid) == 4, deadline_s=60)  # three of rank 0, decode of rank 1
        body = json.dumps({"text_input": "hello", "max_tokens": 5}).encode()
        with urllib.request.urlopen(f"http://127.0.0.1:{http}/v2/models/ensemble/generate", body, 20) as answer:
            assert json.load(answer)["num_output_tokens"] == 5
    assert process.returncode == 0, (tmp_path / "log").read_text()


@pytest.mark.triton
def test_a_real_server_whose_decode_has_died_ends_and_leaves_nothing_behind(tmp_path: Path, engine_dir: Path) -> None:
    with real_servers(tmp_path, engine_dir, "single", 1) as (process, _http):
        time.sleep(2 * PERIOD_S)
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
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, ConnectionError):
        return False


def count_stubs(pid: int) -> int:
    """Python stubs among the descendants of a process."""
    return sum(child.name().startswith("triton_python_b") for child in psutil.Process(pid).children(recursive=True))
