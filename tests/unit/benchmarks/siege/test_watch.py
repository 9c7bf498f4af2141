"""The watch samples memory and descriptors of a stack, finds restarts, and ends a process that takes too much."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from benchmarks.siege.watch import Watch
from tests.support.waiting import wait_until

PERIOD_S = 0.02
NO_LIMIT_MIB = 1e6


@dataclass
class Child:
    pid: int | None


@dataclass
class TwoProcesses:
    frontend: Child | None
    triton: Child | None


@contextmanager
def running(code: str = "") -> Iterator[subprocess.Popen[bytes]]:
    """A process that does something, writes a byte, and then waits for its standard input to be closed."""
    program = f"{code}\nimport sys\nsys.stdout.buffer.write(b'.')\nsys.stdout.buffer.flush()\nsys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        process.stdout.read(1)
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def watching(stack: TwoProcesses, limit_mib: float = NO_LIMIT_MIB) -> Iterator[Watch]:
    watch = Watch(stack, limit_mib, period_s=PERIOD_S)
    try:
        yield watch
    finally:
        watch.close()


def test_memory_and_descriptors_are_those_of_the_processes() -> None:
    with (
        running() as small,
        running("open_files = [open('/dev/null') for _ in range(100)]") as open_files,
        watching(TwoProcesses(Child(small.pid), Child(open_files.pid))) as watch,
    ):
        seen = watch.take()
    assert seen.descriptors["Triton"] - seen.descriptors["front end"] == 100
    assert seen.processes == 2
    assert 2 < seen.peak_memory_mib < 200
    assert seen.restarts == []


def test_a_peak_is_that_of_its_period() -> None:
    with running("kept = bytearray(b'x' * 2**26)") as large, running() as small:
        stack = TwoProcesses(Child(small.pid), Child(large.pid))
        with watching(stack) as watch:
            peak_mib = watch.take().peak_memory_mib
            stack.triton = None
            wait_until(lambda: watch.take().memory_mib < peak_mib - 60, what="a smaller sample")
            assert watch.take().peak_memory_mib < peak_mib - 60


def test_a_restarted_process_is_found() -> None:
    with running() as first, running() as second:
        stack = TwoProcesses(Child(first.pid), None)
        with watching(stack) as watch:
            stack.frontend = Child(second.pid)
            periods: list[list[str]] = []

            def has_restarted() -> bool:
                periods.append(watch.take().restarts)
                return bool(periods[-1])

            wait_until(has_restarted, what="the restart")
    assert periods[-1] == ["front end was restarted"]


def test_the_largest_process_is_ended_when_all_together_use_too_much() -> None:
    with (
        running("kept = bytearray(b'x' * 2**26)") as large,
        running() as small,
        watching(TwoProcesses(Child(small.pid), Child(large.pid)), limit_mib=60.0) as watch,
    ):
        wait_until(lambda: large.poll() is not None, what="the end of the largest process")
        assert small.poll() is None
        assert "was ended: the stack used more than 60 MiB" in watch.take().restarts[0]
