"""A start that cannot complete: a directory that is not writable, a process that exits, a signal."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from launcher.local.errors import StartError
from launcher.local.stack import Stack
from launcher.ports import free_ports
from launcher.settings import StackSettings
from tests.support.sample_requests import write_manifest
from tests.support.waiting import DEADLINE_S, wait_until

_PORTS = ("port", "triton_http_port", "triton_grpc_port", "triton_metrics_port")


def make_stack(run_dir: Path, **settings: Any) -> Stack:
    ports: dict[str, Any] = dict(zip(_PORTS, free_ports(4), strict=True))
    return Stack(StackSettings(run_dir=run_dir, executor="scripted", **ports, **settings), Console(quiet=True))


def test_model_repository_that_is_not_writable_is_reported(tmp_path: Path) -> None:
    """In a container with a read-only root, that is every folder without a tmpfs."""
    write_manifest(tmp_path)
    deployment = tmp_path / "deployment.toml"
    deployment.write_text(f'[[models]]\nname = "one"\nengine_dir = "{tmp_path}"\n')
    (tmp_path / "model_repository").touch()
    stack = make_stack(tmp_path, deployment=deployment)
    with (
        pytest.raises(StartError, match=r"model_repository.* is not writable \(File exists\).*RUN_DIR"),
        stack.running(),
    ):
        pytest.fail("the stack has started")


def test_run_directory_that_is_not_writable_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    stack = make_stack(tmp_path / "file" / "run")
    with pytest.raises(StartError, match=r"is not writable .*RUN_DIR"), stack.running():
        pytest.fail("the stack has started")


# A stack whose processes are both the shell script `sys.argv[2]`.
STACK_OF_SCRIPTS = """
import sys
from pathlib import Path
from rich.console import Console
from launcher.local.processes import ChildProcess
from launcher.local.serve import serve
from launcher.local.stack import Stack
from launcher.settings import StackSettings

run_dir, script, *ports = sys.argv[1:]

def create(settings, *, log_dir, **_):
    return ChildProcess("The script", ["sh", "-c", script], {}, log_dir / "script.log", stop_timeout_s=5)

names = ("port", "triton_http_port", "triton_grpc_port", "triton_metrics_port")
settings = StackSettings(executor="scripted", engine_dir=run_dir, run_dir=run_dir, **dict(zip(names, map(int, ports))))
console = Console()
sys.exit(serve(Stack(settings, console, create_triton=create, create_frontend=create), console))
"""


def serve_scripts(run_dir: Path, script: str, ports: list[int]) -> subprocess.Popen[str]:
    write_manifest(run_dir)
    command = [sys.executable, "-c", STACK_OF_SCRIPTS, str(run_dir), script, *map(str, ports)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_signal_cancels_a_start_that_waits_for_the_engine(tmp_path: Path, number: signal.Signals) -> None:
    ports = free_ports(4)
    with serve_scripts(tmp_path, "exec sleep 60", ports) as launcher:
        wait_until((tmp_path / "logs" / str(ports[0]) / "script.log").exists)
        launcher.send_signal(number)
        try:
            output, _ = launcher.communicate(timeout=DEADLINE_S)
        finally:
            launcher.kill()
    assert launcher.returncode == 0
    assert "Stopped." in output
    assert "Ready." not in output


def test_process_that_exits_during_startup_is_reported_with_its_log(tmp_path: Path) -> None:
    script = "echo 'EngineStartError: the engine is broken \"quoted\"'; echo the last line; exit 1"
    with serve_scripts(tmp_path, script, free_ports(4)) as launcher:
        output, _ = launcher.communicate(timeout=DEADLINE_S)
    assert launcher.returncode == 1
    assert "the last line" not in output
    assert output.splitlines()[-2].startswith("Not started. the engine is broken The whole log: ")


def test_process_that_exits_without_a_known_cause_is_reported_below_its_log(tmp_path: Path) -> None:
    """The reason is the last line of the output, except for an empty one that sets it apart from make's own error."""
    with serve_scripts(tmp_path, "echo the last line; exit 1", free_ports(4)) as launcher:
        output, _ = launcher.communicate(timeout=DEADLINE_S)
    assert launcher.returncode == 1
    *_, log_line, blank, reason, end = output.splitlines()
    assert (log_line, blank, end) == ("the last line", "", "")
    assert reason.startswith("Not started. The script exited during startup.")
