"""Runs the Triton servers of one engine: passes signals on, and ends all of them when one can't serve any more.

Always their parent, never one of them: somebody has to notice a dead stub (stubs.py), and mpirun can't be left to stop
its servers. When a stub has died, all servers are ended and this process ends with DEAD_STUB_STATUS: an engine is its
processes on all GPUs together, so whoever runs the container starts all of it anew.
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

from launcher.stub_monitor import PERIOD_S, StubInventory, arguments_of, child_pids

DEAD_STUB_STATUS = 70  # EX_SOFTWARE, the stub's own when its engine has died
RANK_ARGUMENT = "--id=rank"
_END_LIMIT_S = 5.0  # for servers without a stub to leave /dev/shm tidy; every request of theirs has failed already
_POLL_S = 0.1


class ServerGroup:
    """One tritonserver, or an mpirun with one for each rank.

    At SIGTERM, mpirun gives its processes one second and then kills them, which cuts every running request off. Its
    setting odls_base_sigkill_timeout is waited out twice whatever happens, also when a rank has died (open-mpi/ompi
    #7033; measured with 4.1.4). So the servers get SIGTERM from us, and mpirun ends when they have ended. A second
    signal ends the waiting.
    """

    def __init__(self, line: Sequence[str], *, is_mpirun: bool) -> None:
        self._line = list(line)
        self._is_mpirun = is_mpirun
        self._process: subprocess.Popen[bytes] | None = None
        self._times_asked = 0
        self._has_lost_a_stub = False
        self._ended = threading.Event()

    def run(self) -> int:
        """The exit status: the process's own, which is that of the first rank that failed; or DEAD_STUB_STATUS.

        To be called in the main thread. OSError when the program can't be started.
        """
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._stop)
        # A session of its own, so that a Ctrl-C in the terminal reaches us alone.
        self._process = process = subprocess.Popen(self._line, stdin=subprocess.DEVNULL, start_new_session=True)
        if self._times_asked:
            process.terminate()
        watch = threading.Thread(target=self._watch, args=(process,), name="stub-watch", daemon=True)
        watch.start()
        status = process.wait()
        self._ended.set()
        watch.join(timeout=2 * _END_LIMIT_S)
        if self._has_lost_a_stub:
            return DEAD_STUB_STATUS
        return status if status >= 0 else 128 - status

    def _stop(self, _signal: int, _frame: object) -> None:
        self._times_asked += 1
        if self._process is None:
            return  # `run` looks at the count
        servers = self._servers(self._process.pid) if self._times_asked == 1 else []
        _send(servers, signal.SIGTERM)
        if not servers:
            self._end_now(self._process)

    def _end_now(self, process: subprocess.Popen[bytes]) -> None:
        """mpirun ends what it has started; a server alone has nobody who would."""
        if self._is_mpirun:
            process.terminate()
        else:
            process.kill()

    def _watch(self, process: subprocess.Popen[bytes]) -> None:
        censuses: dict[int, StubInventory] = {}
        while not self._ended.wait(PERIOD_S):
            for server in self._servers(process.pid):
                model = censuses.setdefault(server, StubInventory(server)).look()
                if self._times_asked:
                    return  # servers that end take their stubs with them
                if model is not None:
                    self._give_up(process, server, model)
                    return

    def _give_up(self, process: subprocess.Popen[bytes], server: int, model: str) -> None:
        self._has_lost_a_stub = True
        sys.stderr.write(
            f"The process of the model {model!r} has died ({_rank_of(server)}), and Triton does not start it again: "
            f"ending all servers with status {DEAD_STUB_STATUS}, to be started anew.\n"
        )
        sys.stderr.flush()
        _send(self._servers(process.pid), signal.SIGTERM)
        deadline = time.monotonic() + _END_LIMIT_S
        while time.monotonic() < deadline and not self._ended.wait(_POLL_S):
            pass
        if not self._ended.is_set():
            _send(self._servers(process.pid), signal.SIGKILL)
            self._end_now(process)

    def _servers(self, started: int) -> list[int]:
        """Told by their arguments: the executor's workers are mpirun's children too."""
        if not self._is_mpirun:
            return [started]
        return [pid for pid in child_pids(started) if _rank_of(pid)]


def _rank_of(server: int) -> str:
    """Such as "rank0"; empty for what is no server of ours."""
    marks = [part for part in arguments_of(server) if part.startswith(RANK_ARGUMENT)]
    return marks[0].removeprefix("--id=") if marks else ""


def _send(pids: Sequence[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
