"""Servers by others: started with the right command line, measured, left out if they do not start, and stopped."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import psutil
import pytest

from benchmarks.load.point import LoadPoint
from benchmarks.processes import CLIENT, FRONT_END_AND_TRITON
from benchmarks.report.results import Run
from benchmarks.runner import RunContext, run_group
from benchmarks.scenarios import NVIDIA, Client, Group, Scenario, System
from benchmarks.systems.baselines import nvidia_peers
from benchmarks.systems.programs import ServerError, running_program
from benchmarks.systems.servers import Server, check_tree, engine_of_tree
from launcher.settings import REPOSITORY_ROOT

FAKE = Path(__file__).parents[3] / "fakes" / "nvidia_front_end"
BROKEN = System("broken", "broken", Client.HTTP)


class Recorder:
    """A Progress that keeps what has failed."""

    def __init__(self) -> None:
        self.failures: list[str] = []

    def show_step(self, text: str) -> None: ...

    def run_finished(self, run: Run) -> None: ...

    def failed(self, text: str) -> None:
        self.failures.append(text)


def measure(
    systems: tuple[System, ...],
    point: LoadPoint,
    starters: dict[str, Callable[[], AbstractContextManager[Server]]],
    run_dir: Path,
) -> tuple[list[Run], list[str]]:
    progress = Recorder()
    group = Group("test", (Scenario("test", "Does it work?", systems, (point,)),))
    context = RunContext(run_dir, run_dir, starters, load_processes=2)
    return list(run_group(group, context, progress)), progress.failures


def test_front_end_of_nvidia_is_started_and_measured_with_the_tokens_of_its_engine(tmp_path: Path) -> None:
    (peer,) = nvidia_peers(FAKE, sys.executable, tmp_path, tmp_path)
    point = LoadPoint(streams=130, max_tokens=5)
    runs, failures = measure((NVIDIA,), point, {NVIDIA.server: peer.start}, tmp_path)
    assert failures == []
    (run,) = runs
    assert (run.figures.failures, run.figures.requests) == (0, 130), run.figures.first_failure
    assert run.figures.tokens == run.figures.events == 650
    assert run.load_processes == 2
    assert set(run.cpu_s) == {FRONT_END_AND_TRITON, CLIENT}
    assert "EXECUTOR=scripted" in peer.description


def test_server_that_does_not_start_is_reported_and_left_out(tmp_path: Path) -> None:
    (peer,) = nvidia_peers(FAKE, sys.executable, tmp_path, tmp_path)
    (broken,) = nvidia_peers(FAKE, "no-such-python", tmp_path, tmp_path)
    starters = {NVIDIA.server: peer.start, BROKEN.server: broken.start}
    runs, failures = measure((BROKEN, NVIDIA), LoadPoint(streams=1, max_tokens=2), starters, tmp_path)
    assert [run.system for run in runs] == [NVIDIA.name]
    assert "broken is not measured. no-such-python cannot be started" in failures[0]


def test_program_that_ends_by_itself_is_an_error_with_its_last_lines(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit('no GPU')"]
    with (
        pytest.raises(ServerError, match="ended with status 1") as caught,
        running_program(command, log=tmp_path / "logs" / "program.log", is_ready=lambda: False),
    ):
        pytest.fail("it is not ready")
    assert "no GPU" in str(caught.value)


def test_program_runs_in_its_folder_and_environment_until_the_end_of_the_block(tmp_path: Path) -> None:
    code = "import os, pathlib, time; pathlib.Path(os.environ['NAME']).touch(); time.sleep(60)"
    made = tmp_path / "made"
    command = [sys.executable, "-c", code]
    with running_program(
        command, folder=tmp_path, environment={"NAME": "made"}, log=tmp_path / "log", is_ready=made.exists
    ) as pid:
        assert psutil.pid_exists(pid)
        started = time.monotonic()
    assert not psutil.pid_exists(pid)
    assert time.monotonic() - started < 30


def test_other_tree_must_have_a_launcher_and_an_environment(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"launcher/__main__\.py does not exist"):
        check_tree(tmp_path)


def test_other_tree_uses_its_own_engine_if_it_has_one(tmp_path: Path) -> None:
    engine_dir = REPOSITORY_ROOT / ".run" / "engines" / "some-model"
    assert engine_of_tree(tmp_path, engine_dir) == engine_dir
    own = tmp_path / ".run" / "engines" / "some-model"
    own.mkdir(parents=True)
    assert engine_of_tree(tmp_path, engine_dir) == own
