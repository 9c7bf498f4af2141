"""The servers of an engine, alone and under a real mpirun: arguments and environment of each, and how all end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from launcher.gpu.launch import LaunchSettings
from launcher.gpu.server_group import DEAD_STUB_STATUS
from launcher.stub_monitor import POLL_PERIOD_S
from tests.fakes.model_directory import make_model_directory
from tests.fakes.tritonserver import write_llmapi_launch, write_tritonserver
from tests.support.trtllm_engine import make_engine
from tests.support.waiting import DEADLINE_S, wait_until

pytestmark = pytest.mark.skipif(
    shutil.which("mpirun") is None, reason="no mpirun here; Debian, Ubuntu: apt-get install openmpi-bin"
)


def parent_of(process: psutil.Process) -> psutil.Process:
    parent = process.parent()
    assert parent is not None
    return parent


class Launched:
    """The launcher as a process, with an mpirun as its child."""

    def __init__(self, process: subprocess.Popen[str], records: Path) -> None:
        self.process = process
        self._records = records

    def await_ranks(self, count: int) -> list[dict[str, Any]]:
        files = [self._records / f"rank{rank}.json" for rank in range(count)]
        wait_until(lambda: all(file.exists() for file in files))
        return [json.loads(file.read_text()) for file in files]

    def drained(self) -> list[str]:
        return sorted(path.name for path in self._records.glob("drained*"))

    def await_spawned(self) -> list[int]:
        """Returns the process ids of orted and of the ranks that decode's stub has spawned."""
        path = self._records / "ranks"
        wait_until(path.exists)
        pids: list[int] = json.loads(path.read_text())
        return pids

    def kill_stub(self, model: str, rank: int) -> None:
        """Kills a stub that the launcher has had time to count."""
        time.sleep(2 * POLL_PERIOD_S)
        (stub,) = [
            child
            for child in psutil.Process(self.process.pid).children(recursive=True)
            if f"/models/{model}/1/model.py" in child.cmdline() and f"--id=rank{rank}" in parent_of(child).cmdline()
        ]
        stub.kill()


@contextmanager
def launched(tmp_path: Path, ranks: int = 2, drain_s: float = 0.0, **settings: str) -> Iterator[Launched]:
    server = write_tritonserver(tmp_path)
    engine = tmp_path / "engine"
    if settings.get("EXECUTOR") == "tensorrt_llm_pytorch":
        make_model_directory(engine, tp=ranks)
    else:
        make_engine(engine, {"world_size": ranks, "tp_size": ranks}, ranks)
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
def test_each_rank_gets_its_arguments_all_cores_and_the_environment(tmp_path: Path, count: int) -> None:
    with launched(tmp_path, ranks=count, EXECUTOR="tensorrt_llm") as running:
        ranks = running.await_ranks(count)
    for number, rank in enumerate(ranks):
        assert f"--id=rank{number}" in rank["argv"]
        assert ("--load-model=decode" in rank["argv"]) == (number > 0)
        assert rank["OMPI_COMM_WORLD_SIZE"] == str(count)
        assert rank["EXECUTOR"] == "tensorrt_llm"
        assert rank["cores"] == len(os.sched_getaffinity(0))


def test_every_log_line_begins_with_its_rank(tmp_path: Path) -> None:
    with launched(tmp_path) as running:
        running.await_ranks(2)
        running.process.terminate()
        output, _ = running.process.communicate(timeout=DEADLINE_S)
    assert "[1,0]<stdout>:" in output
    assert "[1,1]<stdout>:" in output


def test_orchestrator_mode_starts_one_server(tmp_path: Path) -> None:
    with launched(tmp_path, LAUNCH_MODE="orchestrator") as running:
        (rank,) = running.await_ranks(1)
    assert rank["TRTLLM_PARALLEL_MODE"] == "orchestrator"
    assert rank["OMPI_COMM_WORLD_SIZE"] == "1"
    assert not (tmp_path / "rank1.json").exists()


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_every_server_drains_for_longer_than_mpirun_would_wait(
    tmp_path: Path, number: signal.Signals, ranks: int
) -> None:
    """Stubs that end during the drain do not count as dead: servers that shut down end their stubs."""
    with launched(tmp_path, ranks=ranks, drain_s=3.0) as running:
        running.await_ranks(ranks)
        running.process.send_signal(number)
        _, errors = running.process.communicate(timeout=DEADLINE_S)
        assert running.process.returncode == 0
    assert running.drained() == [f"drained{rank}" for rank in range(ranks)]
    assert "has died" not in errors


@pytest.mark.parametrize("ranks", [1, 2])
def test_second_signal_ends_the_drain(tmp_path: Path, ranks: int) -> None:
    with launched(tmp_path, ranks=ranks, drain_s=60.0) as running:
        running.await_ranks(ranks)
        running.process.terminate()
        with pytest.raises(subprocess.TimeoutExpired):
            running.process.wait(1.0)  # the first signal's drain is still running
        running.process.terminate()
        assert running.process.wait(DEADLINE_S) != 0
    assert running.drained() == []


def test_failed_rank_ends_all_servers_with_its_status(tmp_path: Path) -> None:
    """The container exits and is restarted as a whole: an engine that lacks one of its GPUs cannot serve."""
    with launched(tmp_path, FAIL="1") as running:
        assert running.process.wait(DEADLINE_S) == 3


@pytest.mark.parametrize(
    ("ranks", "mode", "victim"),
    [(1, "single", 0), (2, "leader", 0), (2, "leader", 1), (1, "orchestrator", 0)],
    ids=["single", "leader, rank 0", "leader, rank 1", "orchestrator"],
)
def test_dead_stub_ends_all_servers_with_status_70_and_one_line(
    tmp_path: Path, ranks: int, mode: str, victim: int
) -> None:
    """Triton does not restart decode's stub and reports ready; no other process of the container would notice."""
    with launched(tmp_path, ranks=ranks, LAUNCH_MODE=mode) as running:
        running.await_ranks(ranks)
        running.kill_stub("decode", victim)
        _, errors = running.process.communicate(timeout=DEADLINE_S)
    assert running.process.returncode == DEAD_STUB_STATUS
    assert [line for line in errors.splitlines() if "has died" in line] == [
        f"The process of model 'decode' has died (rank{victim}), and Triton does not restart it. Ending all servers; "
        "exit status 70. Restart the container."
    ]
    assert running.drained() == [f"drained{rank}" for rank in range(ranks)]


def test_server_that_does_not_end_after_its_stub_is_killed(tmp_path: Path) -> None:
    with launched(tmp_path, ranks=1, drain_s=60.0) as running:
        running.await_ranks(1)
        running.kill_stub("decode", 0)
        assert running.process.wait(DEADLINE_S) == DEAD_STUB_STATUS
    assert running.drained() == []


def test_stub_that_triton_restarts_does_not_count_as_dead(tmp_path: Path) -> None:
    with launched(tmp_path, ranks=1, REVIVES="1") as running:
        running.await_ranks(1)
        running.kill_stub("decode", 0)
        wait_until((tmp_path / "revived").exists)
        with pytest.raises(subprocess.TimeoutExpired):
            running.process.wait(8 * POLL_PERIOD_S)  # longer than a stub may be missing


# --- The PyTorch runtime's ranks -------------------------------------------------------------------------------------

PYTORCH: dict[str, Any] = {"EXECUTOR": "tensorrt_llm_pytorch", "RANKS": "2"}


def assert_gone(pids: list[int]) -> None:
    wait_until(lambda: not any(map(psutil.pid_exists, pids)), what="the ranks are gone")


def test_spawned_ranks_are_below_one_server(tmp_path: Path) -> None:
    with launched(tmp_path, **PYTORCH) as running:
        (rank,) = running.await_ranks(1)
        pids = running.await_spawned()
        assert rank["OMPI_COMM_WORLD_SIZE"] is None
        assert not (tmp_path / "rank1.json").exists()
        below = {child.pid for child in psutil.Process(running.process.pid).children(recursive=True)}
        assert set(pids) < below
        running.process.terminate()
        assert running.process.wait(DEADLINE_S) == 0
    assert_gone(pids)


@pytest.mark.parametrize("outlive", [False, True], ids=["they end by themselves", "they stay"])
def test_ranks_of_a_dead_stub_are_gone_when_the_launcher_ends(tmp_path: Path, outlive: bool) -> None:
    """They hold GPU memory, and would make the next start fail."""
    settings: dict[str, Any] = {**PYTORCH, **({"OUTLIVE": "1"} if outlive else {})}
    with launched(tmp_path, ranks=2, **settings) as running:
        running.await_ranks(1)
        orted, *pids = running.await_spawned()
        running.kill_stub("decode", 0)
        if outlive:
            psutil.Process(orted).kill()  # so that nothing connects the ranks with the server any more
        _, errors = running.process.communicate(timeout=DEADLINE_S)
    assert running.process.returncode == DEAD_STUB_STATUS
    assert not any(map(psutil.pid_exists, [orted, *pids]))
    assert "left behind" in errors or not outlive


def test_ranks_of_a_server_that_is_killed_are_gone_when_the_launcher_ends(tmp_path: Path) -> None:
    with launched(tmp_path, OUTLIVE="1", **PYTORCH) as running:
        running.await_ranks(1)
        pids = running.await_spawned()
        (server,) = psutil.Process(running.process.pid).children()
        server.kill()
        assert running.process.wait(DEADLINE_S) == 128 + signal.SIGKILL
        assert not any(map(psutil.pid_exists, pids))


def test_orphans_leave_no_zombies_while_the_server_runs(tmp_path: Path) -> None:
    with launched(tmp_path, REVIVES="1", **PYTORCH) as running:
        running.await_ranks(1)
        first = running.await_spawned()
        running.kill_stub("decode", 0)  # Triton revives it
        assert_gone(first)


# --- Several machines ------------------------------------------------------------------------------------------------


@contextmanager
def launched_on_nodes(tmp_path: Path, **settings: Any) -> Iterator[Launched]:
    program = str(write_llmapi_launch(tmp_path))
    modes: dict[str, Any] = {
        "LAUNCH_MODE": "multi-node",
        "EXECUTOR": "tensorrt_llm_pytorch",
        "TRTLLM_LLMAPI_LAUNCH": program,
    }
    with launched(tmp_path, **modes, **settings) as running:
        yield running


def nodes(tmp_path: Path) -> list[int]:
    files = [tmp_path / f"node{rank}" for rank in range(2)]
    wait_until(lambda: all(file.exists() and file.read_text() for file in files))
    return [int(file.read_text()) for file in files]


def test_one_server_runs_beside_the_ranks_of_all_nodes_without_mpi_variables(tmp_path: Path) -> None:
    with launched_on_nodes(tmp_path) as running:
        (rank,) = running.await_ranks(1)
        pids = nodes(tmp_path)
        assert (rank["OMPI_COMM_WORLD_SIZE"], rank["PMIX_RANK"]) == (None, None)
        assert rank["TLLM_SPAWN_PROXY_PROCESS"] == "1"
        running.process.terminate()
        assert running.process.wait(DEADLINE_S) == 0
    assert running.drained() == ["drained0"]
    assert_gone(pids)


def test_ranks_of_all_nodes_end_with_the_server(tmp_path: Path) -> None:
    with launched_on_nodes(tmp_path, FAIL="0") as running:
        running.await_ranks(1)
        pids = nodes(tmp_path)
        _, errors = running.process.communicate(timeout=DEADLINE_S)
        assert running.process.returncode == DEAD_STUB_STATUS
        assert "Triton has ended" in errors
    assert_gone(pids)


def test_dead_stub_ends_the_ranks_of_all_nodes(tmp_path: Path) -> None:
    with launched_on_nodes(tmp_path) as running:
        running.await_ranks(1)
        pids = nodes(tmp_path)
        running.kill_stub("decode", 0)
        _, errors = running.process.communicate(timeout=DEADLINE_S)
        assert running.process.returncode == DEAD_STUB_STATUS
        assert "'decode' has died (rank0)" in errors
    assert_gone(pids)


def test_dead_rank_of_a_node_ends_the_server(tmp_path: Path) -> None:
    with launched_on_nodes(tmp_path) as running:
        running.await_ranks(1)
        pids = nodes(tmp_path)
        below = psutil.Process(running.process.pid).children(recursive=True)
        psutil.Process(pids[1]).kill()
        assert running.process.wait(DEADLINE_S) != 0
        _gone, alive = psutil.wait_procs(below, timeout=DEADLINE_S)
        assert not alive
