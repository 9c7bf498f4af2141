"""The processes that `MPI_Comm_spawn` makes: an orted, and below it one Python for each rank, as mpi4py starts it.

Run as a program only. Their habits were measured with Open MPI 4.1.4 and mpi4py 4.1.2, idle ranks: orted has a session
of its own (`--set-sid`) and each rank a process group; when a rank is killed, orted ends the others within 2 s, and the
leader goes on and waits without end; when the leader or orted is killed, the ranks end within 2 s. Ranks that are busy
in a driver are not so quick: with `outlive`, they stay until they are killed. A time limit ends them when a test has
not.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

_PR_SET_NAME = 15
_LIFE_S = 300
_NOTICE_S = 1.0
_PERIOD_S = 0.1


def spawn(count: int, *, outlive: bool = False) -> tuple[subprocess.Popen[bytes], list[int]]:
    """Starts an orted and `count` ranks, with the interpreter that mpi4py takes. Returns the ranks' process ids."""
    command = [sys.executable, "-S", "-E", __file__, "orted", str(count), *(["outlive"] if outlive else [])]
    orted = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
    assert orted.stdout is not None
    with orted.stdout as lines:
        return orted, [int(lines.readline()) for _ in range(count)]


def is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def _run_orted(count: int, options: Sequence[str]) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_NAME, b"orted", 0, 0, 0)
    command = [sys.executable, "-S", "-E", __file__, "-m", "mpi4py.futures.server", *options]
    ranks = [
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, preexec_fn=os.setpgrp)  # noqa: PLW1509 - there is no other thread
        for _ in range(count)
    ]
    sys.stdout.write("".join(f"{item.pid}\n" for item in ranks))
    sys.stdout.close()
    os.set_blocking(0, False)  # the pipe that ends with the leader
    while not _has_ended(0) and any(item.poll() is None for item in ranks):
        if any(item.poll() for item in ranks):  # a signal; 0 is a rank that has ended by itself
            break
        time.sleep(_PERIOD_S / 4)
    noticed = time.monotonic() + _NOTICE_S
    while time.monotonic() < noticed and any(item.poll() is None for item in ranks):
        time.sleep(_PERIOD_S / 4)
    for item in ranks:
        if "outlive" not in options:
            item.kill()
        item.wait()
    while not _has_ended(0):
        time.sleep(_PERIOD_S)


def _has_ended(pipe: int) -> bool:
    try:
        return os.read(pipe, 1) == b""
    except BlockingIOError:
        return False


def _run_rank(options: Sequence[str]) -> None:
    parent = os.getppid()
    signal.signal(signal.SIGTERM, signal.SIG_IGN if "outlive" in options else lambda *_: os._exit(0))
    while os.getppid() == parent or "outlive" in options:
        time.sleep(_PERIOD_S)
    time.sleep(_NOTICE_S)


def _main(arguments: Sequence[str]) -> None:
    signal.alarm(_LIFE_S)
    if arguments[0] == "orted":
        _run_orted(int(arguments[1]), arguments[2:])
    else:
        _run_rank(arguments[2:])


if __name__ == "__main__":
    _main(sys.argv[1:])
