"""The stack's own decisions: the API key, the engine's place, and a Ctrl-C while it starts."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from launcher.local import stack
from launcher.local.stack import Stack, StartError
from launcher.settings import StackSettings
from llm_pipeline.runtime.deployment import Deployment
from tests.support.waiting import DEADLINE_S, wait_until
from tests.unit.launcher.local.test_preflight import free_ports


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in StackSettings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)


def make_stack(run_dir: Path, **settings: Any) -> Stack:
    return Stack(StackSettings(run_dir=run_dir, **settings), Console(quiet=True))


# --- The key ---------------------------------------------------------------------------------------------------------


def test_a_made_key_is_kept_where_only_its_owner_reads_it(tmp_path: Path) -> None:
    key = make_stack(tmp_path)._find_key()
    path = tmp_path / "api-key"
    assert key is not None
    assert key.startswith("sk-")
    assert len(key) > 30
    assert path.read_text() == f"{key}\n"
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_made_key_is_used_again(tmp_path: Path) -> None:
    assert make_stack(tmp_path)._find_key() == make_stack(tmp_path)._find_key()


def test_every_run_directory_has_another_key(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    assert make_stack(tmp_path)._find_key() != make_stack(tmp_path / "other")._find_key()


def test_an_empty_key_file_is_filled_and_closed(tmp_path: Path) -> None:
    path = tmp_path / "api-key"
    path.write_text("\n")
    path.chmod(0o644)
    assert make_stack(tmp_path)._find_key() == path.read_text().strip() != ""
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_key_that_is_set_is_not_written_anywhere(tmp_path: Path) -> None:
    assert make_stack(tmp_path, api_key="mine")._find_key() == "mine"
    assert list(tmp_path.iterdir()) == []


def test_with_a_key_file_no_key_is_made(tmp_path: Path) -> None:
    assert make_stack(tmp_path, api_keys_file=tmp_path / "keys.json")._find_key() is None
    assert list(tmp_path.iterdir()) == []


# --- Where it can't write --------------------------------------------------------------------------------------------


def test_a_place_that_can_t_be_written_ends_the_start_in_words(tmp_path: Path) -> None:
    """In a container with a read-only root, that is every folder without a tmpfs."""
    (tmp_path / "deployment.toml").write_text('[[models]]\nname = "one"\n')
    (tmp_path / "model_repository").touch()
    made = make_stack(tmp_path)
    made.deployment = Deployment.load(tmp_path / "deployment.toml")
    with pytest.raises(StartError, match=r"model_repository.* can't be written \(File exists\).*RUN_DIR"):
        made._model_repository()


def test_a_run_directory_that_can_t_be_written_ends_the_start_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stack, "run_preflight", lambda settings: None)
    (tmp_path / "file").touch()
    with (
        pytest.raises(StartError, match=r"can't be written .*RUN_DIR"),
        make_stack(tmp_path / "file" / "run").running(),
    ):
        raise AssertionError("it started")


# --- What the children are told --------------------------------------------------------------------------------------


def test_the_front_end_is_told_its_ports_its_model_and_its_key(tmp_path: Path) -> None:
    made = make_stack(tmp_path, port=1111, triton_grpc_port=2222, model_name="a model", host="0.0.0.0")
    made.api_key = "the key"
    environment = made._frontend_environment()
    assert (environment["HOST"], environment["PORT"]) == ("0.0.0.0", "1111")
    assert (environment["TRITON_GRPC_PORT"], environment["MODEL_NAME"]) == ("2222", "a model")
    assert environment["API_KEY"] == "the key"


@pytest.mark.parametrize("drain_timeout_s", [0.0, 30.0, 300.0])
def test_the_front_end_has_the_time_to_drain_that_it_is_told(tmp_path: Path, drain_timeout_s: float) -> None:
    """Its supervisor ends its workers 10 s after the drain; the launcher must not come before it."""
    made = make_stack(tmp_path, drain_timeout_s=drain_timeout_s)
    assert float(made._frontend_environment()["DRAIN_TIMEOUT_S"]) == drain_timeout_s
    assert made.frontend_stop_limit_s > drain_timeout_s + 10


def test_the_front_end_is_told_the_key_file(tmp_path: Path) -> None:
    environment = make_stack(tmp_path, api_keys_file=tmp_path / "keys.json")._frontend_environment()
    assert environment["API_KEYS_FILE"] == str(tmp_path / "keys.json")


def builder(folder: Path, script: str) -> str:
    """A program in the place of `python -m build_engine`."""
    program = folder / "builder"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return str(program)


def test_the_engine_is_built_in_the_run_directory_wherever_that_is_seen_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The build runs in the repository, the stack in the caller's directory; a relative RUN_DIR means the caller's."""
    monkeypatch.setattr(stack.sys, "executable", builder(tmp_path, f'echo "$@" > {tmp_path}/arguments'))
    monkeypatch.chdir(tmp_path)
    engine_dir = make_stack(Path("run"))._build_engine()
    assert engine_dir == tmp_path / "run" / "engines" / "smollm2-135m-instruct" / "cpu-fp16"
    assert (tmp_path / "arguments").read_text().split()[-1] == str(engine_dir)


def test_a_failed_build_is_a_start_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack.sys, "executable", builder(tmp_path, "exit 1"))
    with pytest.raises(stack.StartError, match="could not be built"):
        make_stack(tmp_path)._build_engine()


def test_a_build_ends_when_somebody_asks_for_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack.sys, "executable", builder(tmp_path, "exec sleep 60"))
    starting = make_stack(tmp_path)
    starting._asked_to_stop.set()
    with pytest.raises(stack.StoppedError):
        starting._build_engine()


# --- Starting and stopping -------------------------------------------------------------------------------------------

# Processes that start and never get ready stand in for Triton and the front end.
NEVER_READY = """
import sys
from pathlib import Path
from rich.console import Console
from launcher.local import stack
from launcher.local import triton_wheel as triton_server
from launcher.settings import StackSettings

run_dir, sleeper, *ports = sys.argv[1:]
sys.executable = sleeper
triton_server.prepare_backends = lambda run_dir: run_dir
triton_server.command = lambda settings, backends, repository, **_: [sleeper]
names = ("port", "triton_http_port", "triton_grpc_port", "triton_metrics_port")
settings = StackSettings(
    executor="scripted", engine_dir=run_dir, run_dir=run_dir, **dict(zip(names, map(int, ports)))
)
sys.exit(stack.serve(settings, Console()))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_a_start_that_waits_for_the_engine_can_be_interrupted(tmp_path: Path, number: signal.Signals) -> None:
    sleeper = tmp_path / "sleeper"
    sleeper.write_text("#!/bin/sh\nexec sleep 60\n")
    sleeper.chmod(0o755)
    ports = free_ports(4)
    command = [sys.executable, "-c", NEVER_READY, str(tmp_path), str(sleeper), *map(str, ports)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as launcher:
        wait_until((tmp_path / "logs" / str(ports[0]) / "frontend.log").exists)
        launcher.send_signal(number)
        try:
            said, _ = launcher.communicate(timeout=DEADLINE_S)
        finally:
            launcher.kill()
    assert launcher.returncode == 0
    assert "Stopped." in said
    assert "Ready." not in said
