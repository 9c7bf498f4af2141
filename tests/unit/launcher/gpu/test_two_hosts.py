"""Ranks on two hosts: network namespaces with a real sshd and a real mpirun, and the scripted Triton on both."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from launcher.gpu.launch import LaunchSettings
from launcher.gpu.worker import WorkerSettings
from launcher.stub_monitor import POLL_PERIOD_S
from tests.fakes.tritonserver import write_tritonserver
from tests.support import namespaces
from tests.support.namespaces import Host
from tests.support.trtllm_engine import make_engine
from tests.support.two_hosts import GROUP, NAMES, reason_to_skip, write_keys
from tests.support.waiting import DEADLINE_S, wait_until

END_S = 10.0  # after the death of a process, until no rank is left
LOST_HOST_S = 30.0  # after the last packet of a host: keep-alive probes, and the end of the ranks


@pytest.fixture(autouse=True, scope="module")
def _needs_namespaces() -> None:
    if reason := reason_to_skip():
        pytest.skip(reason)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_keys(tmp_path_factory.mktemp("keys"))


def is_rank(process: psutil.Process, mark: str) -> bool:
    """Whether a process is not sshd, and has `mark` in an argument. Zombies have no arguments."""
    try:
        return process.name() != "sshd" and any(mark in argument for argument in process.cmdline())
    except psutil.NoSuchProcess:
        return False


@dataclass
class Group:
    """A launcher on the first host and a worker on the second."""

    hosts: list[Host]
    processes: dict[str, subprocess.Popen[str]]
    folder: Path
    environment: dict[str, str]

    def start(self, role: str) -> subprocess.Popen[str]:
        host = self.hosts[0 if role == "leader" else 1]
        temporary = self.folder / f"tmp-{role}"
        temporary.mkdir(exist_ok=True)
        arguments = ["--worker"] if role == "worker" else []
        with (self.folder / f"log-{role}").open("w") as log:
            process = subprocess.Popen(
                host.command([sys.executable, "-m", "launcher.gpu", *arguments]),
                env={**self.environment, "TMPDIR": str(temporary), "ROLE": role},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                text=True,
            )
        self.processes[role] = process
        return process

    def log(self, role: str) -> str:
        return (self.folder / f"log-{role}").read_text()

    def ranks(self) -> list[dict[str, Any]]:
        files = [self.folder / f"rank{rank}.json" for rank in range(2)]
        wait_until(lambda: all(file.exists() for file in files), what="both ranks are up")
        return [json.loads(file.read_text()) for file in files]

    def below(self, role: str, mark: str = "") -> list[psutil.Process]:
        """Living processes of a host, but for sshd and the launcher itself, that have `mark` in their arguments."""
        everything = psutil.Process(self.processes[role].pid).children(recursive=True)
        return [process for process in everything if is_rank(process, mark)]

    def await_end_of_ranks(self, limit_s: float = END_S) -> float:
        """Returns the seconds until the launcher has ended and the worker has no rank, and still runs."""
        started = time.monotonic()
        self.processes["leader"].wait(limit_s)
        wait_until(lambda: not self.below("worker"), limit_s=limit_s, what="no rank is left on the other host")
        assert self.processes["worker"].poll() is None, self.log("worker")
        took_s = time.monotonic() - started
        print(f"ended after {took_s:.1f} s with status {self.processes['leader'].returncode}")
        return took_s


@contextmanager
def group(tmp_path: Path, keys: Path, *roles: str, **environment: str) -> Iterator[Group]:
    known = {*LaunchSettings.model_fields, *WorkerSettings.model_fields}
    server = write_tritonserver(tmp_path)
    make_engine(tmp_path / "engine", {"world_size": 2, "tp_size": 2}, 2)
    variables = {
        **{name: value for name, value in os.environ.items() if name.lower() not in known},
        "ENGINE_DIR": str(tmp_path / "engine"),
        "TRITONSERVER": str(server),
        "RECORDS": str(tmp_path),
        "DRAIN_S": "0",
        "GPU_COUNT": "1",
        "SSH_KEYS": str(keys),
        "EXECUTOR": "tensorrt_llm",
        **GROUP,
        **environment,
    }
    with ExitStack() as stack:
        hosts = stack.enter_context(namespaces.hosts(NAMES))
        running = Group(hosts, {}, tmp_path, variables)
        try:
            for role in roles or ("worker", "leader"):
                running.start(role)
            yield running
        finally:
            everything = [*psutil.Process().children(recursive=True)]
            for process in running.processes.values():
                process.terminate()
                process.terminate()
            for role, process in running.processes.items():
                process.wait(DEADLINE_S)
                print(f"--- {role}: {process.returncode}\n{running.log(role)}")
            _gone, alive = psutil.wait_procs(everything, timeout=END_S)
            assert not alive


def test_the_ranks_start_on_both_hosts_with_the_environment_of_their_own(tmp_path: Path, keys: Path) -> None:
    """The leader is first, as LeaderWorkerSet starts it, and waits for the other host."""
    with group(tmp_path, keys, "leader") as running:
        time.sleep(2 * POLL_PERIOD_S)
        running.start("worker")
        first, second = running.ranks()
        assert "--id=rank0" in first["argv"]
        assert {"--id=rank1", "--load-model=decode"} <= set(second["argv"])
        for rank in (first, second):
            assert rank["OMPI_COMM_WORLD_SIZE"] == "2"
            assert rank["EXECUTOR"] == "tensorrt_llm"
            assert rank["cores"] == len(os.sched_getaffinity(0))
        (server,) = running.below("worker", "--id=rank1")
        assert server.environ()["ROLE"] == "worker"
        assert server.environ()["TMPDIR"].endswith("tmp-worker")
        assert {process.name() for process in running.below("leader", "--id=rank")} == {"mpirun", "tritonserver"}


def test_a_drain_ends_the_ranks_of_both_hosts_with_status_0(tmp_path: Path, keys: Path) -> None:
    """All pods of a group get SIGTERM at once: the worker's ranks have to stay until rank 0 has drained."""
    with group(tmp_path, keys, DRAIN_S="2") as running:
        running.ranks()
        for process in running.processes.values():
            process.send_signal(signal.SIGTERM)
        time.sleep(3 * POLL_PERIOD_S)
        assert running.below("worker", "--id=rank1")
        assert running.processes["leader"].wait(END_S) == 0
        assert running.processes["worker"].wait(END_S) == 0
        assert (tmp_path / "drained0").exists()


@pytest.mark.parametrize("victim", ["stub", "orted"])  # the server of a dead stub is killed
def test_death_of_a_process_on_the_other_host_ends_the_group(tmp_path: Path, keys: Path, victim: str) -> None:
    with group(tmp_path, keys) as running:
        running.ranks()
        time.sleep(3 * POLL_PERIOD_S)  # the worker has counted the stubs
        mark = {"stub": "/decode/1/model.py", "orted": "ess_base_vpid"}[victim]
        name = {"stub": "triton_python_b", "orted": "orted"}[victim]
        (process,) = [found for found in running.below("worker", mark) if found.name().startswith(name)]
        process.kill()
        running.await_end_of_ranks()
        assert running.processes["leader"].returncode != 0
    if victim == "stub":
        assert "'decode' has died (rank1)" in running.log("worker")


def test_ranks_end_with_a_leader_that_is_killed(tmp_path: Path, keys: Path) -> None:
    with group(tmp_path, keys) as running:
        running.ranks()
        for process in (*running.below("leader"), psutil.Process(running.processes["leader"].pid)):
            process.kill()  # as the kubelet ends a container
        running.await_end_of_ranks()


def test_a_host_that_is_lost_ends_the_ranks_on_both(tmp_path: Path, keys: Path) -> None:
    with group(tmp_path, keys) as running:
        running.ranks()
        running.hosts[1].disconnect()
        running.await_end_of_ranks(LOST_HOST_S)
        assert running.processes["leader"].returncode != 0


def test_no_other_key_and_no_other_host_is_accepted(tmp_path: Path, keys: Path) -> None:
    def ssh(*changes: str) -> subprocess.CompletedProcess[str]:
        options = {"IdentityFile": str(keys / "client"), "UserKnownHostsFile": str(keys / "known_hosts")}
        options.update(dict(change.split("=") for change in changes))
        line = ["ssh", "-F", "none", "-p", "2222", "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes"]
        line += [part for name, value in options.items() for part in ("-o", f"{name}={value}")]
        command = running.hosts[0].command([*line, NAMES[1], "echo $ROLE"])
        return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)

    (tmp_path / "wrong_hosts").write_text(f"* {(keys / 'client.pub').read_text()}")
    with group(tmp_path, keys, "worker") as running:
        wait_until(lambda: ssh().stdout == "worker\n", what="the group's own key is accepted")
        assert "Permission denied (publickey)" in ssh(f"IdentityFile={keys / 'stranger'}").stderr
        assert "Host key verification failed" in ssh(f"UserKnownHostsFile={tmp_path / 'wrong_hosts'}").stderr
        running.processes["worker"].terminate()
        assert running.processes["worker"].wait(END_S) == 0  # at once: it has no ranks
