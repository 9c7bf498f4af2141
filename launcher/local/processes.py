"""One supervised child process: its log file, its restarts, its end."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

_log = logging.getLogger(__name__)
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_RESTART_PAUSES_S = (0.5, 2.0, 5.0, 15.0)
_STABLE_S = 60.0
_LOG_LIMIT_BYTES = 64 * 2**20


class ChildProcess:
    """Starts a command, and starts it again when it ends by itself, until `stop`."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        log_path: Path,
        *,
        stop_limit_s: float,
        tidy_up: Callable[[], None] = lambda: None,
    ) -> None:
        """`tidy_up` is called when it has ended, however that came about."""
        self.name = name
        self.log_path = log_path
        self._command = list(command)
        self._environment = dict(environment)
        self._stop_limit_s = stop_limit_s
        self._tidy_up = tidy_up
        self._stopping = threading.Event()
        self._restarting = threading.Lock()  # a stop sees either the old process or the new one
        self._process: subprocess.Popen[bytes] | None = None
        self._thread: threading.Thread | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def is_alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it once; `supervise` keeps it running."""
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        self._process = self._spawn(mode="wb")

    def supervise(self) -> None:
        """From now on, start it again when it ends by itself."""
        self._thread = threading.Thread(target=self._watch, name=f"watch-{self.name}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """SIGTERM, then SIGKILL for it and all that it started when the limit has passed. Returns when it has ended."""
        with self._restarting:
            self._stopping.set()
            process = self._process
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(self._stop_limit_s)
            except subprocess.TimeoutExpired:
                _log.warning("%s did not end within %.0f s and is killed", self.name, self._stop_limit_s)
                _kill_group(process)
                process.wait()
        if self._thread is not None:
            self._thread.join(timeout=self._stop_limit_s)
        self._tidy_up()

    def kill(self) -> None:
        """End it and all that it started the hard way; while supervised, it is started again."""
        if self._process is not None and self._process.poll() is None:
            _kill_group(self._process)

    def last_lines(self, count: int = 15) -> str:
        """The end of its log, for people."""
        if not self.log_path.exists():
            return ""
        return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-count:])

    def _spawn(self, mode: str) -> subprocess.Popen[bytes]:
        if self.log_path.exists() and self.log_path.stat().st_size > _LOG_LIMIT_BYTES:
            mode = "wb"
        with self.log_path.open(mode) as log:
            return subprocess.Popen(
                self._command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C in the terminal is ours to pass on, in order
                preexec_fn=_end_with_parent,  # noqa: PLW1509 - one call of prctl, which takes no lock
            )

    def _watch(self) -> None:
        deaths = 0
        while self._process is not None:
            started = time.monotonic()
            status = self._process.wait()
            _kill_group(self._process)  # what it leaves behind: a stub outlives a tritonserver that was killed
            if self._stopping.is_set():
                return
            self._tidy_up()
            deaths = 0 if time.monotonic() - started > _STABLE_S else deaths
            pause = _RESTART_PAUSES_S[min(deaths, len(_RESTART_PAUSES_S) - 1)]
            _log.error("%s ended with status %s; starting it again in %.1f s", self.name, status, pause)
            if self._stopping.wait(pause):
                return
            deaths += 1
            self._restart()

    def _restart(self) -> None:
        with self._restarting:
            if self._stopping.is_set():
                return
            try:
                self._process = self._spawn(mode="ab")
            except OSError:  # no memory, a full disk: that may pass, and the watch goes on with the dead process
                _log.exception("%s could not be started again", self.name)


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # it leads its own session, and so its own group


def _end_with_parent() -> None:
    """In the child: get SIGTERM when the launcher dies, even by SIGKILL, so that nothing is left behind."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
