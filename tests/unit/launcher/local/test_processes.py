"""Supervised child processes: their logs, their restarts, and that nothing of them is left."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from launcher.local import processes
from launcher.local.processes import ChildProcess
from tests.support.waiting import wait_until

Run = Callable[..., ChildProcess]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """Starts a shell script as a child; stops all of them at the end."""
    children: list[ChildProcess] = []

    def start(
        script: str, *, stop_limit_s: float = 10.0, supervised: bool = False, tidy_up: Callable[[], None] = lambda: None
    ) -> ChildProcess:
        command, log = ["sh", "-c", script], tmp_path / "child.log"
        child = ChildProcess("The child", command, dict(os.environ), log, stop_limit_s=stop_limit_s, tidy_up=tidy_up)
        children.append(child)
        child.start()
        if supervised:
            child.supervise()
        return child

    yield start
    for child in children:
        child.stop()


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_RESTART_PAUSES_S", (0.0,))


def log_lines(child: ChildProcess) -> list[str]:
    return child.last_lines(1000).splitlines()


def group_of(pid: int) -> list[int]:
    """The processes of the group that still run."""
    return [process.pid for process in psutil.process_iter() if is_running_in(process, pid)]


def is_running_in(process: psutil.Process, group: int) -> bool:
    try:
        return os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, ProcessLookupError):
        return False


def test_both_outputs_go_to_the_log(run: Run) -> None:
    child = run("echo one; echo two >&2; echo three")
    wait_until(lambda: not child.is_alive)
    assert child.last_lines(2) == "two\nthree"


def test_a_log_starts_anew_with_its_stack(run: Run) -> None:
    for word in ("old", "new"):
        child = run(f"echo {word}")
        wait_until(lambda child=child: not child.is_alive)
    assert child.last_lines() == "new"


def test_without_a_log_there_are_no_last_lines(tmp_path: Path) -> None:
    child = ChildProcess("The child", ["true"], {}, tmp_path / "child.log", stop_limit_s=1)
    assert child.last_lines() == ""
    assert not child.is_alive
    child.stop()


def test_a_child_has_exactly_the_environment_it_was_given(tmp_path: Path) -> None:
    child = ChildProcess("The child", ["/usr/bin/env"], {"ONLY": "this"}, tmp_path / "child.log", stop_limit_s=1)
    child.start()
    wait_until(lambda: not child.is_alive)
    assert child.last_lines() == "ONLY=this"


def test_a_child_that_is_not_supervised_stays_down(run: Run) -> None:
    child = run("echo started; exit 3")
    wait_until(lambda: not child.is_alive)
    assert log_lines(child) == ["started"]


@pytest.mark.usefixtures("no_pauses")
def test_a_child_that_crashes_is_started_again_and_goes_on_with_its_log(run: Run) -> None:
    child = run("echo started; exit 3", supervised=True)
    wait_until(lambda: len(log_lines(child)) >= 3)
    assert set(log_lines(child)) == {"started"}


@pytest.mark.usefixtures("no_pauses")
def test_a_child_that_is_killed_is_started_again(run: Run) -> None:
    child = run("echo started; sleep 60", supervised=True)
    first = child.pid
    wait_until(lambda: log_lines(child) == ["started"])
    child.kill()
    wait_until(lambda: child.pid != first and child.is_alive)


@pytest.mark.usefixtures("no_pauses")
@pytest.mark.usefixtures("no_pauses")
def test_what_a_killed_child_leaves_behind_ends_before_it_is_started_again(run: Run) -> None:
    """A stub of Triton's Python backend lived on for half an hour after its server was killed."""
    child = run("sleep 300 & echo started; wait", supervised=True)
    wait_until(lambda: "started" in log_lines(child))
    first = child.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: child.pid != first)
    wait_until(lambda: not group_of(first))


def test_a_log_that_has_grown_too_large_starts_anew(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_LOG_LIMIT_BYTES", 20)
    child = run("echo started; exit 3", supervised=True)
    sizes: set[int] = set()
    wait_until(lambda: sizes.add(len(log_lines(child))) or len(sizes & {1, 2, 3}) > 1)
    assert max(sizes) <= 3


def test_a_child_that_can_not_be_started_again_is_tried_again(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_RESTART_PAUSES_S", (0.02,))
    child = run("echo started; exit 3", supervised=True)
    wait_until(lambda: len(log_lines(child)) >= 2)
    hidden = child.log_path.parent.with_name("hidden")
    child.log_path.parent.rename(hidden)  # a full disk would do as well
    pid = child.pid
    hidden_log = hidden / child.log_path.name
    wait_until(lambda: len(hidden_log.read_text().splitlines()) >= 2 and not child.is_alive)
    time.sleep(0.1)  # some tries that fail
    shutil.move(hidden, child.log_path.parent)
    wait_until(lambda: child.pid != pid)
    assert child._thread is not None
    assert child._thread.is_alive()


@pytest.mark.usefixtures("no_pauses")
def test_what_a_child_left_is_tidied_up_after_each_of_its_ends(run: Run) -> None:
    ends: list[bool] = []
    child = run("sleep 60", supervised=True, tidy_up=lambda: ends.append(child.is_alive))
    child.kill()
    wait_until(lambda: child.is_alive and bool(ends))
    child.stop()
    assert ends == [False, False]


def test_stop_asks_and_waits(run: Run) -> None:
    child = run("trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 0.01; done", supervised=True)
    wait_until(lambda: log_lines(child) == ["ready"])
    child.stop()
    assert not child.is_alive
    assert log_lines(child) == ["ready", "bye"]


def test_a_stopped_child_is_not_started_again(run: Run) -> None:
    child = run("echo started; sleep 60", supervised=True)
    wait_until(lambda: log_lines(child) == ["started"])
    pid = child.pid
    child.stop()
    assert (child.pid, child.is_alive) == (pid, False)
    assert child._thread is not None
    assert not child._thread.is_alive()


def test_a_stubborn_child_is_killed_with_all_that_it_started(run: Run) -> None:
    child = run("trap '' TERM; sleep 60 & echo ready; wait", stop_limit_s=0.2)
    wait_until(lambda: log_lines(child) == ["ready"])
    assert child.pid is not None
    assert len(group_of(child.pid)) == 2
    child.stop()
    wait_until(lambda: not group_of(child.pid or 0))


@pytest.mark.usefixtures("no_pauses")
@pytest.mark.parametrize("attempt", range(10))
def test_stop_in_the_middle_of_a_restart_leaves_nothing_running(run: Run, tmp_path: Path, attempt: int) -> None:
    """A child that crashes over and over is being started again most of the time; from now on, it would stay."""
    flag = tmp_path / "stay"
    child = run(f"test -e {flag} && exec sleep 60; exit 1", supervised=True, stop_limit_s=2)
    first = child.pid
    wait_until(lambda: child.pid != first)
    flag.touch()
    child.stop()
    assert not child.is_alive
    assert child._thread is not None
    assert not child._thread.is_alive()


def test_nothing_is_left_when_the_launcher_is_killed(tmp_path: Path) -> None:
    code = f"""
import signal
from pathlib import Path
from launcher.local.processes import ChildProcess
child = ChildProcess("The child", ["sleep", "60"], {{}}, Path({str(tmp_path)!r}) / "child.log", stop_limit_s=1)
child.start()
print(child.pid, flush=True)
signal.pause()
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as launcher:
        assert launcher.stdout is not None
        pid = int(launcher.stdout.readline())
        assert group_of(pid)
        launcher.send_signal(signal.SIGKILL)
    wait_until(lambda: not group_of(pid))
