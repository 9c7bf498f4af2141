"""Supervised child processes: log files, restarts, and a shutdown that leaves no process."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from launcher.local.processes import MAX_LOG_BYTES, ChildProcess
from llm_pipeline.runtime.subprocesses import RestartBackoff
from tests.support.waiting import wait_until

Run = Callable[..., ChildProcess]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """Starts a shell script as a child; stops all of them at the end."""
    children: list[ChildProcess] = []

    def start(
        script: str,
        *,
        supervised: bool = False,
        stop_timeout_s: float = 10.0,
        restart_delay_s: float = 0.0,
        on_exit: Callable[[], None] = lambda: None,
        max_log_bytes: int = MAX_LOG_BYTES,
    ) -> ChildProcess:
        child = ChildProcess(
            "The child",
            ["sh", "-c", script],
            dict(os.environ),
            tmp_path / "child.log",
            stop_timeout_s=stop_timeout_s,
            on_exit=on_exit,
            backoff=RestartBackoff((restart_delay_s,)),
            max_log_bytes=max_log_bytes,
        )
        children.append(child)
        child.start()
        if supervised:
            child.supervise()
        return child

    yield start
    for child in children:
        child.stop()


def log_lines(child: ChildProcess) -> list[str]:
    return child.last_lines(1000).splitlines()


def group_of(pid: int) -> list[int]:
    """The running processes of a group."""
    return [process.pid for process in psutil.process_iter() if is_running_in(process, pid)]


def is_running_in(process: psutil.Process, group: int) -> bool:
    try:
        return os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, ProcessLookupError):
        return False


def test_stdout_and_stderr_go_to_the_log(run: Run) -> None:
    child = run("echo one; echo two >&2; echo three")
    wait_until(lambda: not child.is_alive)
    assert child.last_lines(2) == "two\nthree"


def test_start_truncates_the_log(run: Run) -> None:
    first = run("echo old")
    wait_until(lambda: not first.is_alive)
    second = run("echo new")
    wait_until(lambda: not second.is_alive)
    assert second.last_lines() == "new"


def test_missing_log_has_no_last_lines(tmp_path: Path) -> None:
    child = ChildProcess("The child", ["true"], {}, tmp_path / "child.log", stop_timeout_s=1)
    assert child.last_lines() == ""
    assert not child.is_alive
    child.stop()


def test_child_gets_exactly_the_given_environment(tmp_path: Path) -> None:
    child = ChildProcess("The child", ["/usr/bin/env"], {"ONLY": "this"}, tmp_path / "child.log", stop_timeout_s=1)
    child.start()
    wait_until(lambda: not child.is_alive)
    assert child.last_lines() == "ONLY=this"


def test_unsupervised_child_is_not_restarted(run: Run) -> None:
    child = run("echo started; exit 3")
    wait_until(lambda: not child.is_alive)
    assert log_lines(child) == ["started"]


def test_crashed_child_is_restarted_and_appends_to_its_log(run: Run) -> None:
    child = run("echo started; exit 3", supervised=True)
    wait_until(lambda: len(log_lines(child)) >= 3)
    assert set(log_lines(child)) == {"started"}


def test_killed_child_is_restarted(run: Run) -> None:
    child = run("echo started; sleep 60", supervised=True)
    first = child.pid
    wait_until(lambda: log_lines(child) == ["started"])
    child.kill()
    wait_until(lambda: child.pid != first and child.is_alive)


def test_children_of_a_killed_child_end_before_the_restart(run: Run) -> None:
    """A stub of Triton's Python backend lived on for half an hour after its server was killed."""
    child = run("sleep 300 & echo started; wait", supervised=True)
    wait_until(lambda: "started" in log_lines(child))
    first = child.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: child.pid != first)
    wait_until(lambda: not group_of(first))


def test_log_that_is_too_large_is_truncated(run: Run) -> None:
    child = run("echo started; exit 3", supervised=True, max_log_bytes=20)
    sizes: set[int] = set()

    def has_two_sizes() -> bool:
        sizes.add(len(log_lines(child)))
        return len(sizes & {1, 2, 3}) > 1

    wait_until(has_two_sizes)
    assert max(sizes) <= 3


def test_failed_restart_is_retried(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    child = run("echo started; exit 3", supervised=True, restart_delay_s=0.02)
    wait_until(lambda: len(log_lines(child)) >= 2)
    hidden = child.log_path.parent.with_name("hidden")
    child.log_path.parent.rename(hidden)  # has the effect of a full disk
    pid = child.pid
    hidden_log = hidden / child.log_path.name
    wait_until(lambda: len(hidden_log.read_text().splitlines()) >= 2 and not child.is_alive)
    wait_until(lambda: caplog.text.count("could not be restarted") >= 2)
    shutil.move(hidden, child.log_path.parent)
    wait_until(lambda: child.pid != pid)
    assert child.is_supervised


def test_on_exit_runs_after_every_end(run: Run) -> None:
    ends: list[bool] = []
    child: ChildProcess = run("sleep 60", supervised=True, on_exit=lambda: ends.append(child.is_alive))
    child.kill()
    wait_until(lambda: child.is_alive and bool(ends))
    child.stop()
    assert ends == [False, False]


def test_stop_sends_sigterm_and_waits(run: Run) -> None:
    child = run("trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 0.01; done", supervised=True)
    wait_until(lambda: log_lines(child) == ["ready"])
    child.stop()
    assert not child.is_alive
    assert log_lines(child) == ["ready", "bye"]


def test_stopped_child_is_not_restarted(run: Run) -> None:
    child = run("echo started; sleep 60", supervised=True)
    wait_until(lambda: log_lines(child) == ["started"])
    pid = child.pid
    child.stop()
    assert (child.pid, child.is_alive) == (pid, False)
    assert not child.is_supervised


def test_child_that_ignores_sigterm_is_killed_with_its_children(run: Run) -> None:
    child = run("trap '' TERM; sleep 60 & echo ready; wait", stop_timeout_s=0.2)
    wait_until(lambda: log_lines(child) == ["ready"])
    assert child.pid is not None
    assert len(group_of(child.pid)) == 2
    child.stop()
    wait_until(lambda: not group_of(child.pid or 0))


@pytest.mark.parametrize("attempt", range(10))
def test_stop_during_a_restart_leaves_no_process(run: Run, tmp_path: Path, attempt: int) -> None:
    """A child that crashes in a loop is mostly being restarted; once the flag exists, it would keep running."""
    flag = tmp_path / "stay"
    child = run(f"test -e {flag} && exec sleep 60; exit 1", supervised=True, stop_timeout_s=2)
    first = child.pid
    wait_until(lambda: child.pid != first)
    flag.touch()
    child.stop()
    assert not child.is_alive
    assert not child.is_supervised


def test_child_ends_when_the_launcher_is_killed(tmp_path: Path) -> None:
    code = f"""
import signal
from pathlib import Path
from launcher.local.processes import ChildProcess
child = ChildProcess("The child", ["sleep", "60"], {{}}, Path({str(tmp_path)!r}) / "child.log", stop_timeout_s=1)
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
