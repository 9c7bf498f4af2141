"""Runs the Triton servers of one engine: forwards signals, and ends all of them once one can no longer serve.

This process stays their parent instead of exec'ing a server, because it polls for dead stubs (stub_monitor.py) and
because mpirun does not stop its servers gracefully. After the death of a stub, all servers are ended and this process
exits with DEAD_STUB_STATUS: an engine is its processes on all GPUs together, so the container has to be restarted.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress

from launcher.private_files import keep_files_private
from launcher.stub_monitor import POLL_PERIOD_S, StubInventory

DEAD_STUB_STATUS = 70  # EX_SOFTWARE, which the stub itself uses when its engine has died
RANK_ARGUMENT = "--id=rank"
_END_TIMEOUT_S = 5.0  # servers without a stub need it to clean up /dev/shm; all their requests have failed by then
_END_POLL_PERIOD_S = 0.1


class ServerGroup:
    """One tritonserver, or an mpirun with one for each rank.

    On SIGTERM, mpirun gives its processes one second and then kills them, which would fail every running request. Its
    setting odls_base_sigkill_timeout is waited out twice in any case, also when a rank has died (open-mpi/ompi #7033;
    measured with 4.1.4). So the servers receive SIGTERM directly, and mpirun exits after them. A second signal ends
    the wait.
    """

    def __init__(self, line: Sequence[str], *, is_mpirun: bool) -> None:
        self._line = list(line)
        self._is_mpirun = is_mpirun
        self._process: subprocess.Popen[bytes] | None = None
        self._signal_count = 0
        self._has_lost_stub = False
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
        if self._signal_count:
            process.terminate()
        monitor = threading.Thread(target=self._monitor_stubs, args=(process,), name="stub-monitor", daemon=True)
        monitor.start()
        status = process.wait()
        self._ended.set()
        monitor.join(timeout=2 * _END_TIMEOUT_S)
        if self._has_lost_stub:
            return DEAD_STUB_STATUS
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
        while not self._ended.wait(POLL_PERIOD_S):
            for server in self._server_pids(process.pid):
                model = inventories.setdefault(server, StubInventory(server)).poll()
                if self._signal_count:
                    return  # servers that shut down end their stubs
                if model is not None:
                    self._end_after_dead_stub(process, server, model)
                    return

    def _end_after_dead_stub(self, process: subprocess.Popen[bytes], server: int, model: str) -> None:
        self._has_lost_stub = True
        sys.stderr.write(
            f"The process of model {model!r} has died ({_rank_of(server)}), and Triton does not restart it. "
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
        return [pid for pid in child_pids(process_pid) if _rank_of(pid)]


def _rank_of(pid: int) -> str:
    """Returns the rank of a server, such as "rank0"; an empty string for other processes."""
    marks = [part for part in command_line(pid) if part.startswith(RANK_ARGUMENT)]
    return marks[0].removeprefix("--id=") if marks else ""


def _send(pids: Sequence[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
