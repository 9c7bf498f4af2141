"""`python -m launcher` as a process: start, errors at start, signals, and two stacks on one machine."""

from __future__ import annotations

import signal
import socket
import stat
import subprocess
from pathlib import Path

import psutil
import pytest

from launcher.ports import free_ports
from tests.support.launcher_process import READY_LINE, read_until, start_launcher
from tests.support.stack import RunningStack, running_stack

pytestmark = pytest.mark.triton


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_stops_everything_it_started(engine_dir: Path, tmp_path: Path, number: signal.Signals) -> None:
    process = start_launcher(engine_dir, tmp_path, free_ports(4))
    output = read_until(process, READY_LINE)
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 5, "Triton, three stubs and the front end"
    key_file = tmp_path / "api-key"
    key = key_file.read_text().strip()
    assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
    assert f"Authorization: Bearer {key}" in output
    command = output[output.index("curl -N") : output.index("\n\nCtrl-C")]
    answer = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=True).stdout
    assert answer.startswith("data: {")
    assert answer.endswith("data: [DONE]\n\n")
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == 0
    _gone, alive = psutil.wait_procs(children, timeout=5)
    assert not alive, alive


def test_a_killed_launcher_leaves_no_process(engine_dir: Path, tmp_path: Path) -> None:
    process = start_launcher(engine_dir, tmp_path, free_ports(4))
    read_until(process, READY_LINE)
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate(timeout=30)
    _gone, alive = psutil.wait_procs(children, timeout=30)
    assert not alive, alive


def test_a_busy_port_is_reported_with_its_setting(engine_dir: Path, tmp_path: Path) -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        ports = [*free_ports(3), busy.getsockname()[1]]
        process = start_launcher(engine_dir, tmp_path, ports)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"Port {ports[3]} (TRITON_METRICS_PORT) is in use" in output
    assert "make serve TRITON_METRICS_PORT=" in output


def test_an_invalid_setting_is_reported(engine_dir: Path, tmp_path: Path) -> None:
    process = start_launcher(engine_dir, tmp_path, free_ports(4), EXECUTOR="gpu")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "EXECUTOR" in output


def test_two_stacks_run_side_by_side(engine_dir: Path, scripted_stack: RunningStack, tmp_path: Path) -> None:
    with running_stack(tmp_path, engine_dir, EXECUTOR="scripted") as other:
        for stack in (other, scripted_stack):
            assert stack.complete(prompt="Hello", max_tokens=3).status_code == 200
