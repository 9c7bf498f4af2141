"""The processes that `MPI_Comm_spawn` makes: an orted, and below it one Python for each rank, as mpi4py starts it.

Run as a program only. Each rank is in a process group of its own, and outlives the process that has spawned it, as
Open MPI's do: a dead leader leaves ranks with GPU memory. A time limit ends them when a test has not.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Sequence

_PR_SET_NAME = 15
_LIFE_S = 300


def spawn(count: int) -> tuple[subprocess.Popen[bytes], list[int]]:
    """Starts an orted and `count` ranks, with the interpreter that mpi4py takes. Returns the ranks' process ids."""
    command = [sys.executable, "-S", "-E", __file__, "orted", str(count)]
    orted = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    assert orted.stdout is not None
    with orted.stdout as lines:
        return orted, [int(lines.readline()) for _ in range(count)]


def is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def _run_orted(count: int) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_NAME, b"orted", 0, 0, 0)
    rank = [sys.executable, "-S", "-E", __file__, "-m", "mpi4py.futures.server"]
    ranks = [subprocess.Popen(rank, stdout=subprocess.DEVNULL, preexec_fn=os.setpgrp) for _ in range(count)]  # noqa: PLW1509 - there is no other thread
    sys.stdout.write("".join(f"{item.pid}\n" for item in ranks))
    sys.stdout.close()
    for item in ranks:
        item.wait()


def _main(arguments: Sequence[str]) -> None:
    signal.alarm(_LIFE_S)
    if arguments[0] == "orted":
        _run_orted(int(arguments[1]))
    else:
        signal.pause()  # a rank: SIGTERM or the alarm ends it


if __name__ == "__main__":
    _main(sys.argv[1:])
