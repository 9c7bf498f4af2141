"""One supervised child process: log file, restarts, shutdown."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from launcher.private_files import keep_files_private, make_private_directory, open_private
from llm_pipeline.runtime.subprocesses import RestartBackoff, end_with_parent

_log = logging.getLogger(__name__)
RESTART_DELAYS_S = (0.5, 2.0, 5.0, 15.0)
STABLE_UPTIME_S = 60.0
MAX_LOG_BYTES = 64 * 2**20


def python_program(module: str, python: str = sys.executable) -> list[str]:
    """Returns the command line of one of our modules.

    From Python 3.11 on, the current directory is not searched for it: users start the stack beside packages of their
    own, and `frontend` is a common name.
    """
    return [python, *(["-P"] if sys.version_info >= (3, 11) else []), "-m", module]


class ChildProcess:
    """Starts a command, and restarts it whenever it exits, from `supervise` until `stop`."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        log_path: Path,
        *,
        stop_timeout_s: float,
        on_exit: Callable[[], None] = lambda: None,
        backoff: RestartBackoff | None = None,
        max_log_bytes: int = MAX_LOG_BYTES,
    ) -> None:
        """`on_exit` runs whenever the process has ended, for any reason.

        `backoff` chooses the delay before each restart. A log that exceeds `max_log_bytes` is truncated at the next
        restart.
        """
        self.name = name
        self.log_path = log_path
        self.backoff = backoff or RestartBackoff(RESTART_DELAYS_S, stable_s=STABLE_UPTIME_S)
        self._command = list(command)
        self._environment = dict(environment)
        self._stop_timeout_s = stop_timeout_s
        self._on_exit = on_exit
        self._max_log_bytes = max_log_bytes
        self._stopping = threading.Event()
        self._restart_lock = threading.Lock()  # `stop` sees either the old process or the new one
        self._process: subprocess.Popen[bytes] | None = None
        self._supervisor: threading.Thread | None = None

    @property
    def pid(self) -> int | None:
        """Process id of the current or last process; None before `start`."""
        return self._process.pid if self._process else None

    @property
    def is_alive(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def is_supervised(self) -> bool:
        """Whether the process would be restarted if it exited."""
        return self._supervisor is not None and self._supervisor.is_alive()

    def start(self) -> None:
        """Starts the process, with an empty log, once; `supervise` keeps it running."""
        make_private_directory(self.log_path.parent)
        self._process = self._spawn(mode="wb")

    def supervise(self) -> None:
        """Restarts the process, from now on, whenever it exits."""
        self._supervisor = threading.Thread(target=self._supervise, name=f"supervise-{self.name}", daemon=True)
        self._supervisor.start()

    def stop(self) -> None:
        """Sends SIGTERM, kills the process and its children after the timeout, and returns when it has ended."""
        with self._restart_lock:
            self._stopping.set()
            process = self._process
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(self._stop_timeout_s)
            except subprocess.TimeoutExpired:
                _log.warning("%s did not end within %.0f s. Killing it.", self.name, self._stop_timeout_s)
                _kill_group(process)
                process.wait()
        if self._supervisor is not None:
            self._supervisor.join(timeout=self._stop_timeout_s)
        self._on_exit()

    def kill(self) -> None:
        """Kills the process and its children; if supervised, it is restarted."""
        if self._process is not None and self._process.poll() is None:
            _kill_group(self._process)

    def last_lines(self, count: int = 15) -> str:
        """Returns the last lines of the log; an empty string if it does not exist."""
        if not self.log_path.exists():
            return ""
        return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-count:])

    def _spawn(self, mode: str) -> subprocess.Popen[bytes]:
        if self.log_path.exists() and self.log_path.stat().st_size > self._max_log_bytes:
            mode = "wb"
        with open(self.log_path, mode, opener=open_private) as log:
            return subprocess.Popen(
                self._command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C in the terminal reaches the launcher alone, which stops in order
                preexec_fn=_prepare_child,  # noqa: PLW1509 - a few system calls, which take no lock
            )

    def _supervise(self) -> None:
        while self._process is not None:
            started = time.monotonic()
            status = self._process.wait()
            _kill_group(self._process)  # its children: a stub outlives a tritonserver that was killed
            if self._stopping.is_set():
                return
            self._on_exit()
            delay_s = self.backoff.next_delay_s(time.monotonic() - started)
            _log.error("%s exited with status %s. Restarting it in %.1f s.", self.name, status, delay_s)
            if self._stopping.wait(delay_s):
                return
            self._restart()

    def _restart(self) -> None:
        with self._restart_lock:
            if self._stopping.is_set():
                return
            try:
                self._process = self._spawn(mode="ab")
            except OSError:  # out of memory, disk full: possibly temporary, so the next turn tries again
                _log.exception("%s could not be restarted", self.name)


def _prepare_child() -> None:
    end_with_parent()
    keep_files_private()


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # the child leads its own session, and so its own group
