"""Which hosts share an engine, the command lines for them, and the combinations that are refused."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from launcher.gpu.hosts import await_hosts, hosts_of
from launcher.gpu.launch import LaunchSettings, choose_mode, command, main
from launcher.gpu.served_engine import LaunchError, ServedEngine
from tests.support.trtllm_engine import make_engine

GROUP = {"lws_leader_address": "demo-3.demo.serving", "lws_group_size": 2}
PODS = ("demo-3.demo.serving", "demo-3-1.demo.serving")


def make_settings(**changed: Any) -> LaunchSettings:
    return LaunchSettings(**{"engine_dir": Path("/engine"), "tritonserver": Path("/tritonserver"), **changed})


def contexts(line: list[str]) -> list[list[str]]:
    """The parts of mpirun's command line between colons, one for each rank."""
    parts: list[list[str]] = [[]]
    for argument in line:
        parts = [*parts, []] if argument == ":" else [*parts[:-1], [*parts[-1], argument]]
    return parts


def test_the_pods_of_a_group_are_its_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LWS_LEADER_ADDRESS", "demo-3.demo.serving")
    monkeypatch.setenv("LWS_GROUP_SIZE", "3")
    assert hosts_of(make_settings()) == (*PODS, "demo-3-2.demo.serving")


@pytest.mark.parametrize("changed", [{}, {"lws_group_size": 1}, {"mpirun_hosts": "alone"}])
def test_a_single_host_needs_no_ssh(changed: dict[str, Any]) -> None:
    assert hosts_of(make_settings(**changed)) == ()


def test_hosts_of_the_setting_replace_those_of_the_group() -> None:
    assert hosts_of(make_settings(mpirun_hosts="a, 10.0.0.2", **GROUP)) == ("a", "10.0.0.2")


@pytest.mark.parametrize("hosts", ["a,", "a,b c", "a,$(id)", "a,a", "a,-v"])
def test_names_that_are_no_hosts_are_refused(hosts: str) -> None:
    with pytest.raises(ValidationError):
        make_settings(mpirun_hosts=hosts)


def test_a_group_without_an_address_is_refused() -> None:
    with pytest.raises(LaunchError, match="LWS_LEADER_ADDRESS is not"):
        hosts_of(make_settings(lws_group_size=2))


def test_each_host_has_its_share_of_the_ranks_and_the_first_serves() -> None:
    parts = contexts(command(make_settings(**GROUP), "leader", 4))
    assert [part[part.index("--host") + 1] for part in parts] == [PODS[0], PODS[0], PODS[1], PODS[1]]
    assert ["--allow-http=false" in part for part in parts] == [False, True, True, True]


def test_ssh_is_strict_and_uses_the_group_s_key_alone() -> None:
    line = command(make_settings(ssh_keys="/keys", ssh_port=2200, **GROUP), "leader", 2)
    agent = line[line.index("plm_rsh_agent") + 1].split()
    assert agent[:7] == ["ssh", "-F", "none", "-p", "2200", "-i", "/keys/client"]
    assert {"StrictHostKeyChecking=yes", "UserKnownHostsFile=/keys/known_hosts", "IdentitiesOnly=yes"} < set(agent)
    with pytest.raises(LaunchError, match="has a space"):
        command(make_settings(ssh_keys="/my keys", **GROUP), "leader", 2)


def test_a_model_directory_uses_upstream_s_program_on_all_hosts() -> None:
    settings = make_settings(**GROUP)
    mode = choose_mode(settings, ServedEngine(16, "pytorch"))
    line = command(settings, mode, 16)
    assert mode == "multi-node"
    assert line[line.index("--host") + 1] == f"{PODS[0]}:8,{PODS[1]}:8"
    assert line[line.index("-n") + 1] == "16"


def test_an_engine_of_two_hosts_is_launched_by_a_leader() -> None:
    assert choose_mode(make_settings(gpu_count=8, **GROUP), ServedEngine(16)) == "leader"


@pytest.mark.parametrize(
    ("changed", "world_size", "message"),
    [
        ({}, 3, "cannot be shared equally by 2 hosts"),
        ({"gpu_count": 8}, 8, "2 hosts have 8 each"),
        ({"launch_mode": "single"}, 2, "LAUNCH_MODE=single uses one host"),
        ({"launch_mode": "orchestrator"}, 2, "LAUNCH_MODE=orchestrator uses one host"),
        ({"mpirun_hostfile": "/hosts"}, 2, "are both set"),
    ],
)
def test_combinations_that_cannot_work_are_refused(changed: dict[str, Any], world_size: int, message: str) -> None:
    with pytest.raises(LaunchError, match=message):
        choose_mode(make_settings(**changed, **GROUP), ServedEngine(world_size))


def test_the_option_sets_the_hosts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_engine(tmp_path, {"world_size": 2, "tp_size": 2}, 2)
    monkeypatch.setenv("ENGINE_DIR", str(tmp_path))
    assert main(["--dry-run", "--hosts", "a,b"]) == 0
    assert "--host \\\n    b" in capsys.readouterr().out


@pytest.mark.parametrize("greeting", [b"HTTP/1.1 400 Bad Request", b"SSH-2.0-OpenSSH"], ids=["HTTP", "ssh"])
def test_the_start_waits_for_hosts_that_do_not_answer_as_sshd_does(greeting: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def answer() -> None:
            with suppress(OSError):  # the listener is closed
                while True:
                    with listener.accept()[0] as connection:
                        connection.sendall(greeting)

        threading.Thread(target=answer, daemon=True).start()
        settings = make_settings(ssh_port=port, mpirun_hosts_timeout_s=0.001)
        if greeting.startswith(b"SSH-"):
            await_hosts(["127.0.0.1"], settings)
        else:
            with pytest.raises(LaunchError, match=rf"No sshd on port {port} of 127.0.0.1 within 0.001 s"):
                await_hosts(["127.0.0.1"], settings)
        listener.shutdown(socket.SHUT_RDWR)


def test_a_limit_of_locked_memory_is_reported() -> None:
    """In a process of its own: the limit cannot be raised again."""

    def warning(limit: str) -> str:
        program = "import resource as r; from launcher.gpu.hosts import memlock_warning; "
        program += f"{limit}print(memlock_warning(), end='')"
        run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True)
        return run.stdout

    assert "Processes may lock 64 KiB of memory here" in warning("r.setrlimit(r.RLIMIT_MEMLOCK, (65536, 65536)); ")
