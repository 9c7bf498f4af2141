"""The watchdog, in a process of its own: it ends it although a thread keeps the GIL, and only then."""

from __future__ import annotations

import subprocess
import sys
import time

PROGRAM = """
import ctypes, time
from llm_pipeline.executors.tensorrt_llm.watchdog import ProcessWatchdog

def keep_the_gil(seconds):
    secret = "a secret of the program"
    ctypes.PyDLL(None).usleep(int(seconds * 1e6))  # PyDLL keeps it, as the bindings do while they wait for a lock

watchdog = ProcessWatchdog(1.0)
for _ in range(20):
    watchdog.feed()
    time.sleep(0.1)
{rest}
print("went on")
"""


def run(rest: str) -> tuple[subprocess.CompletedProcess[str], float]:
    """Runs the program, which feeds the watchdog for twice its timeout, and then `rest`. Returns its seconds, too."""
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(rest=rest)], capture_output=True, text=True, timeout=60, check=False
    )
    return done, time.monotonic() - started


def test_a_process_whose_gil_is_kept_ends_with_the_stacks_of_its_threads() -> None:
    done, seconds = run("keep_the_gil(50)")
    assert done.returncode == 1
    assert seconds < 30
    assert "keep_the_gil" in done.stderr
    assert "secret" not in done.stderr
    assert "went on" not in done.stdout


def test_a_stopped_watchdog_ends_nothing() -> None:
    done, _ = run("watchdog.stop(); keep_the_gil(2)")
    assert (done.returncode, done.stdout.strip()) == (0, "went on")
