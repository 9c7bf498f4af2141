"""Finding the processes below another one, and ending them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from llm_pipeline.runtime.process_tree import (
    ProcessId,
    child_pids,
    command_line,
    descendants,
    identify,
    is_alive,
    kill_and_wait,
    process_name,
    reap,
)
from tests.support.waiting import wait_until

SLEEP = "import time; time.sleep(60)"
# A parent with one child in a session of its own; it prints the child's id.
PARENT = (
    "import subprocess, sys, time\n"
    f"child = subprocess.Popen([sys.executable, '-S', '-c', {SLEEP!r}], start_new_session=True)\n"
    "print(child.pid, flush=True); time.sleep(60)"
)


@pytest.fixture
def family() -> Iterator[tuple[subprocess.Popen[str], int]]:
    with subprocess.Popen([sys.executable, "-S", "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        yield parent, child
        parent.kill()
        found = identify(child)
        if found is not None:
            kill_and_wait([found], 5)


def test_descendants_are_found_across_sessions(family: tuple[subprocess.Popen[str], int]) -> None:
    parent, child = family
    pids = [process.pid for process in descendants(os.getpid())]
    assert pids.index(parent.pid) < pids.index(child)
    assert child in child_pids(parent.pid)
    assert SLEEP in command_line(child)
    assert process_name(child).startswith("python")


def test_killed_processes_are_gone_afterwards(family: tuple[subprocess.Popen[str], int]) -> None:
    parent, child = family
    both = [process for process in descendants(os.getpid()) if process.pid in (parent.pid, child)]
    assert kill_and_wait(both, 10) == []
    assert not any(map(is_alive, both))
    assert identify(parent.pid) is None


def test_a_stopped_process_is_alive_and_is_killed(family: tuple[subprocess.Popen[str], int]) -> None:
    parent, child = family
    os.kill(child, signal.SIGSTOP)
    (found,) = descendants(parent.pid)
    assert is_alive(found)
    assert kill_and_wait([found], 10) == []


def test_a_zombie_is_dead_and_can_be_reaped() -> None:
    pid = os.posix_spawn(sys.executable, [sys.executable, "-S", "-c", ""], {})
    wait_until(lambda: identify(pid) is None)
    assert os.path.exists(f"/proc/{pid}")
    assert command_line(pid) in ([], [""])
    reap(pid)
    assert not os.path.exists(f"/proc/{pid}")


def test_a_process_that_ended_before_it_was_looked_at_leaves_no_zombie() -> None:
    process = subprocess.Popen([sys.executable, "-S", "-c", SLEEP])
    identity = identify(process.pid)
    assert identity is not None
    process.kill()
    wait_until(lambda: not is_alive(identity), what="the process ends")
    assert kill_and_wait([identity], 5.0) == []
    with pytest.raises(ChildProcessError):
        os.waitpid(process.pid, os.WNOHANG)
    process.wait()  # Popen learns that it has been reaped


def test_another_process_with_the_same_id_is_not_taken_for_it(family: tuple[subprocess.Popen[str], int]) -> None:
    _parent, child = family
    found = identify(child)
    assert found is not None
    earlier = ProcessId(child, found.started - 1)
    assert not is_alive(earlier)
    assert kill_and_wait([earlier], 0) == []
    assert is_alive(found)


def test_a_process_that_stays_is_returned(family: tuple[subprocess.Popen[str], int]) -> None:
    """Without any time, even one that was killed is still there."""
    _parent, child = family
    found = identify(child)
    assert found is not None
    assert kill_and_wait([found], 0) == [found]


def test_nothing_is_known_of_a_process_that_has_ended() -> None:
    with subprocess.Popen([sys.executable, "-S", "-c", ""]) as process:
        process.wait()
    pid = process.pid
    assert (list(child_pids(pid)), command_line(pid), process_name(pid), identify(pid)) == ([], [], "", None)
    reap(pid)
