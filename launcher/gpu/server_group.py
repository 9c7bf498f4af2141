"""Runs the Triton servers of one engine: forwards signals, and ends all of them once one can no longer serve.

This process stays their parent instead of exec'ing a server, because it polls for dead stubs (stub_monitor.py) and
because mpirun does not stop its servers gracefully. After the death of a stub, all servers are ended and this process
exits with DEAD_STUB_STATUS: an engine is its processes on all GPUs together, so the container has to be restarted.

It also adopts the processes that a dead server or stub leaves behind, such as the ranks that the PyTorch runtime
spawns, and ends them last: they would hold the GPU memory that the next start needs. Open MPI gives them a session of
their own, so neither a process group nor a session has all of them.
"""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from launcher.private_files import keep_files_private
from launcher.stub_monitor import POLL_PERIOD_S, StubInventory
from llm_pipeline.runtime.process_tree import (
    adopt_orphans,
    child_pids,
    command_line,
    descendants,
    kill_and_wait,
    process_name,
    reap,
)

DEAD_STUB_STATUS = 70  # EX_SOFTWARE, which the stub itself uses when its engine has died
RANK_ARGUMENT = "--id=rank"
SERVE_ARGUMENTS = ("-m", "launcher.gpu", "--serve")  # of a Python that becomes the serving tritonserver
_END_TIMEOUT_S = 5.0  # servers without a stub need it to clean up /dev/shm; all their requests have failed by then
_END_POLL_PERIOD_S = 0.1
_START_TIMEOUT_S = 60.0  # with several hosts: until the server's process is there
_START_POLL_PERIOD_S = 0.05  # a server that can't start is there for a short time
_KILL_TIMEOUT_S = 20.0  # for killed processes to be gone: the driver frees their GPU memory first
_NAME_LENGTH = 15  # the kernel cuts longer names of processes


class ServerGroup:
    """One tritonserver, or an mpirun with one for each rank, or with one beside rank 0 (`is_multi_node`).

    With `spans_hosts`, some of the servers are on other hosts, where worker.py watches them. They are ended after those
    on this host: a rank without rank 0 serves nothing.

    On SIGTERM, mpirun gives its processes one second and then kills them, which would fail every running request. Its
    setting odls_base_sigkill_timeout is waited out twice in any case, also when a rank has died (open-mpi/ompi #7033;
    measured with 4.1.4). So the servers receive SIGTERM directly, and mpirun exits after them. A second signal ends
    the wait.
    """

    def __init__(
        self, line: Sequence[str], *, is_mpirun: bool, is_multi_node: bool = False, spans_hosts: bool = False
    ) -> None:
        self._line = list(line)
        self._is_mpirun = is_mpirun
        self._is_multi_node = is_multi_node
        self._spans_hosts = spans_hosts
        self._outlives_servers = is_multi_node or spans_hosts  # mpirun does, with the ranks of other hosts
        self._process: subprocess.Popen[bytes] | None = None
        self._signal_count = 0
        self._has_lost_stub = False
        self._has_lost_server = False  # the ranks on other hosts go on without it
        self._ended = threading.Event()

    def run(self) -> int:
        """Runs the servers and returns the exit status: that of the first failed rank, or DEAD_STUB_STATUS.

        Call it in the main thread. Raises OSError if the program cannot be started.
        """
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._stop)
        # A session of its own: a Ctrl-C in the terminal reaches this process only, which forwards it.
        self._process = process = subprocess.Popen(
            self._line,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=keep_files_private,  # noqa: PLW1509 - a few system calls, which take no lock
        )
        adopt_orphans()
        if self._signal_count:
            process.terminate()
        monitor = threading.Thread(target=self._monitor_stubs, args=(process,), name="stub-monitor", daemon=True)
        monitor.start()
        status = process.wait()
        self._ended.set()
        monitor.join(timeout=2 * _END_TIMEOUT_S)
        _end_left_behind()
        if self._has_lost_stub or (self._has_lost_server and not self._signal_count):
            return DEAD_STUB_STATUS
        if self._has_lost_server:
            return 0  # it has drained; the status of mpirun is that of the ranks, which were ended
        return status if status >= 0 else 128 - status

    def _stop(self, _signal: int, _frame: object) -> None:
        self._signal_count += 1
        if self._process is None:
            return  # `run` checks the count
        servers = self._server_pids(self._process.pid) if self._signal_count == 1 else []
        _send(servers, signal.SIGTERM)
        if not servers:
            self._end_now(self._process)

    def _end_now(self, process: subprocess.Popen[bytes]) -> None:
        """Kills all servers: mpirun on SIGTERM kills what it has started, a single server needs SIGKILL."""
        if self._is_mpirun:
            process.terminate()
        else:
            process.kill()

    def _monitor_stubs(self, process: subprocess.Popen[bytes]) -> None:
        inventories: dict[int, StubInventory] = {}
        starting = self._outlives_servers  # until a server was seen
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not self._ended.wait(_START_POLL_PERIOD_S if starting else POLL_PERIOD_S):
            _reap_adopted(process.pid)
            servers = self._server_pids(process.pid)
            starting = starting and not servers and time.monotonic() < deadline
            if self._outlives_servers and not starting and not servers:
                self._end_after_server(process)
                return
            for server in servers if not self._signal_count else ():  # servers that shut down end their stubs
                model = inventories.setdefault(server, StubInventory(server)).poll()
                if model is not None and not self._signal_count:
                    self._end_after_dead_stub(process, server, model)
                    return

    def _end_after_server(self, process: subprocess.Popen[bytes]) -> None:
        """Ends the ranks of all machines, which wait for work without end: nothing else does.

        A rank that fails makes mpirun end the others: Open MPI 4.1.4 crashes if it gets a signal at that time.
        """
        if self._spans_hosts and not self._signal_count and self._ended.wait(_END_TIMEOUT_S):
            return
        self._has_lost_server = True
        if not self._signal_count:
            sys.stderr.write(f"Triton has ended. Ending the ranks of all machines; exit status {DEAD_STUB_STATUS}.\n")
            sys.stderr.flush()
        process.terminate()
        if not self._ended.wait(_END_TIMEOUT_S):
            process.kill()

    def _end_after_dead_stub(self, process: subprocess.Popen[bytes], server: int, model: str) -> None:
        self._has_lost_stub = True
        sys.stderr.write(
            f"The process of model {model!r} has died ({rank_of(server)}), and Triton does not restart it. "
            f"Ending all servers; exit status {DEAD_STUB_STATUS}. Restart the container.\n"
        )
        sys.stderr.flush()
        _send(self._server_pids(process.pid), signal.SIGTERM)
        deadline = time.monotonic() + _END_TIMEOUT_S
        while time.monotonic() < deadline and not self._ended.wait(_END_POLL_PERIOD_S):
            pass
        if not self._ended.is_set():
            _send(self._server_pids(process.pid), signal.SIGKILL)
            self._end_now(process)

    def _server_pids(self, process_pid: int) -> list[int]:
        """Returns the tritonservers, recognized by their arguments: an executor's workers are mpirun's children too."""
        if not self._is_mpirun:
            return [process_pid]
        below = [item.pid for item in descendants(process_pid)] if self._is_multi_node else child_pids(process_pid)
        return [pid for pid in below if rank_of(pid)]


def rank_of(pid: int) -> str:
    """Returns the rank of a server, such as "rank0"; an empty string for other processes.

    The program before the argument must be the process itself: launch scripts have the same arguments. A process that
    is about to become the server is one already.
    """
    arguments = command_line(pid)
    if tuple(arguments[1 : 1 + len(SERVE_ARGUMENTS)]) == SERVE_ARGUMENTS:
        return "rank0"
    for program, argument in itertools.pairwise(arguments):
        if argument.startswith(RANK_ARGUMENT) and process_name(pid) == Path(program).name[:_NAME_LENGTH]:
            return argument.removeprefix("--id=")
    return ""


def _reap_adopted(own_child: int) -> None:
    """Removes the zombies of orphans, which have become children of this process."""
    for pid in child_pids(os.getpid()):
        if pid != own_child:
            reap(pid)


def _end_left_behind() -> None:
    left = descendants(os.getpid())
    if not left:
        return
    names = ", ".join(f"{process_name(process.pid)} ({process.pid})" for process in left)
    sys.stderr.write(f"Ending {len(left)} processes that Triton has left behind: {names}.\n")
    if remaining := kill_and_wait(left, _KILL_TIMEOUT_S):
        pids = ", ".join(str(process.pid) for process in remaining)
        sys.stderr.write(f"After {_KILL_TIMEOUT_S:.0f} s, processes {pids} are still there and may hold GPU memory.\n")
    sys.stderr.flush()


def _send(pids: Sequence[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
