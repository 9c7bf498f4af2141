"""`python -m launcher.gpu --worker`: a host whose ranks are started by mpirun on another host, through ssh.

It runs sshd without root, for its own user and one key, and watches what mpirun starts here:

- The ranks get the environment of this process (remote_command.py), as they would without ssh.
- A tritonserver whose stub has died is killed, which ends the ranks on all hosts: stub_monitor.py says why.
- Ranks whose orted, Open MPI's daemon on this host, has died are killed: nothing else ends them.
- After SIGTERM it stays until the ranks have ended, because those on the first host still use them to drain.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from pydantic import Field

from launcher.gpu.hosts import HostSettings, memlock_warning
from launcher.gpu.server_group import rank_of
from launcher.private_files import keep_files_private
from launcher.stub_monitor import POLL_PERIOD_S, StubInventory
from llm_pipeline.runtime.process_tree import (
    adopt_orphans,
    child_pids,
    descendants,
    identify,
    kill_and_wait,
    process_name,
    reap,
)

_DAEMON = "orted"
_KILL_TIMEOUT_S = 20.0  # for killed processes to be gone: the driver frees their GPU memory first
LOST_SSHD_STATUS = 1

# sshd's defaults allow far more: passwords, forwarding, terminals. StrictModes would refuse Kubernetes' files, which
# belong to root and a group.
_CONFIG = """Port {port}
HostKey {keys}/host
AuthorizedKeysFile {keys}/client.pub
AuthenticationMethods publickey
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
StrictModes no
PidFile none
PermitTTY no
PermitUserRC no
DisableForwarding yes
ClientAliveInterval 10
LogLevel ERROR
ForceCommand {command}
"""


class WorkerSettings(HostSettings):
    """Settings of a host that only has ranks."""

    sshd: Path = Field(Path("/usr/sbin/sshd"), description="Path of sshd, on hosts that only have ranks")


class Worker:
    """sshd and the ranks that arrive through it."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._signal_count = 0
        self._wakeup = threading.Event()
        self._inventories: dict[int, StubInventory] = {}

    def run(self) -> int:
        """Runs until SIGTERM and the end of all ranks, or until sshd ends. Call it in the main thread.

        Returns the exit status. Raises OSError if sshd cannot be started.
        """
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._stop)
        sys.stderr.write(memlock_warning())
        keep_files_private()
        adopt_orphans()
        with tempfile.TemporaryDirectory(prefix="triton-completions-worker-") as folder:
            sshd = subprocess.Popen(self._command(Path(folder)), stdin=subprocess.DEVNULL, start_new_session=True)
            try:
                return self._watch(sshd)
            finally:
                self._end_all()

    def _stop(self, _signal: int, _frame: object) -> None:
        self._signal_count += 1
        self._wakeup.set()

    def _command(self, folder: Path) -> list[str]:
        environment, config = folder / "environment.json", folder / "sshd_config"
        environment.write_text(json.dumps(dict(os.environ)))
        command = [sys.executable, "-m", "launcher.gpu.remote_command", str(environment)]
        settings = self._settings
        config.write_text(_CONFIG.format(port=settings.ssh_port, keys=settings.ssh_keys, command=shlex.join(command)))
        return [str(settings.sshd), "-D", "-e", "-f", str(config)]

    def _watch(self, sshd: subprocess.Popen[bytes]) -> int:
        while True:
            self._wakeup.wait(POLL_PERIOD_S)
            self._wakeup.clear()
            self._end_orphans(sshd.pid)
            below = descendants(os.getpid())
            has_ranks = any(process_name(process.pid) == _DAEMON for process in below)
            if self._signal_count > 1 or (self._signal_count and not has_ranks):
                return 0
            if sshd.poll() is not None:
                sys.stderr.write(f"sshd has ended with status {sshd.returncode}; its message is above.\n")
                return LOST_SSHD_STATUS
            if not self._signal_count:
                self._end_servers_without_stub([process.pid for process in below])

    def _end_orphans(self, sshd: int) -> None:
        """Ends what a dead orted has left, and removes zombies. An orted without its ssh session counts as dead."""
        for pid in child_pids(os.getpid()):
            if pid == sshd:
                continue
            reap(pid)
            orphan = identify(pid)
            if orphan is not None and process_name(pid) != _DAEMON:
                sys.stderr.write(f"Ending {process_name(pid)} ({pid}), whose {_DAEMON} has ended.\n")
                kill_and_wait([orphan, *descendants(pid)], _KILL_TIMEOUT_S)

    def _end_servers_without_stub(self, pids: list[int]) -> None:
        servers = {pid: rank for pid in pids if (rank := rank_of(pid))}
        self._inventories = {pid: self._inventories.get(pid) or StubInventory(pid) for pid in servers}
        for pid, inventory in self._inventories.items():
            model = inventory.poll()
            server = identify(pid)
            if model is not None and server is not None:
                sys.stderr.write(
                    f"The process of model {model!r} has died ({servers[pid]}), and Triton does not restart it. "
                    "Ending its server, and with it the ranks on all hosts.\n"
                )
                kill_and_wait([server], _KILL_TIMEOUT_S)

    def _end_all(self) -> None:
        left = kill_and_wait(descendants(os.getpid()), _KILL_TIMEOUT_S)
        if left:
            pids = ", ".join(str(process.pid) for process in left)
            sys.stderr.write(f"After {_KILL_TIMEOUT_S:.0f} s, processes {pids} are still there.\n")
