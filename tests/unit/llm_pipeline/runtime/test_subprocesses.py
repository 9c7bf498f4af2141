"""Restart delays, periodic threads, and children that end with their parent."""

from __future__ import annotations

import subprocess
import sys
import threading

from llm_pipeline.runtime.subprocesses import PeriodicThread, RestartBackoff
from tests.support.waiting import wait_until


def test_delays_grow_with_failures_in_a_row_and_stay_at_the_last() -> None:
    backoff = RestartBackoff((0.0, 0.5, 2.0))
    assert [backoff.next_delay_s() for _ in range(5)] == [0.0, 0.5, 2.0, 2.0, 2.0]


def test_a_long_uptime_makes_the_next_failure_the_first() -> None:
    backoff = RestartBackoff((0.5, 2.0), stable_s=60)
    assert [backoff.next_delay_s(uptime_s) for uptime_s in (1, 1, 60, 61, 1)] == [0.5, 2.0, 2.0, 0.5, 2.0]


def test_reset_makes_the_next_failure_the_first() -> None:
    backoff = RestartBackoff((0.5, 2.0))
    backoff.next_delay_s()
    backoff.reset()
    assert backoff.next_delay_s() == 0.5


def test_a_periodic_thread_survives_a_failing_tick_and_ends_on_close() -> None:
    ticks = threading.Semaphore(0)

    def tick() -> None:
        ticks.release()
        raise ValueError("this tick fails")

    thread = PeriodicThread(tick, period_s=0.001, name="test-ticks")
    thread.start()
    assert ticks.acquire(timeout=20)
    assert ticks.acquire(timeout=20)
    thread.close()
    assert thread.is_closed
    while ticks.acquire(blocking=False):
        pass
    assert not ticks.acquire(timeout=0.05)


def test_a_periodic_thread_may_close_itself() -> None:
    done = threading.Event()

    def tick() -> None:
        thread.close()
        done.set()

    thread = PeriodicThread(tick, period_s=0.001, name="test-close")
    thread.start()
    assert done.wait(20)


PARENT = """
import subprocess, sys
from llm_pipeline.runtime.subprocesses import end_with_parent
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], preexec_fn=end_with_parent)
print(child.pid, flush=True)
input()
"""


def test_a_child_ends_when_its_parent_is_killed() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
    wait_until(lambda: not _is_running(child), what="the end of the child")


def _is_running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
