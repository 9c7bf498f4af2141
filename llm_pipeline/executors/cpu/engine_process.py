"""The engine process as its parent sees it: the process, and the socket to it."""

from __future__ import annotations

import logging
import socket
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection

from llm_pipeline.executors.cpu.engine.ipc import AddRequest, Cancel, EngineSettings, LoadFailed, Ready
from llm_pipeline.executors.port import EngineStartError

_log = logging.getLogger(__name__)
_MODULE = "llm_pipeline.executors.cpu.engine.process"


@dataclass(frozen=True)
class ProcessTimeouts:
    """Limits for waiting on the engine process, in seconds."""

    load_s: float = 180.0
    end_s: float = 5.0  # after SIGTERM, and again after SIGKILL


class EngineProcess:
    """A running engine process. It loads its engine after the constructor returns, see `wait_until_ready`."""

    def __init__(self, settings: EngineSettings, *, timeouts: ProcessTimeouts = ProcessTimeouts()) -> None:
        self._timeouts = timeouts
        ours, theirs = socket.socketpair()
        with ours, theirs:
            self._popen = subprocess.Popen(
                [sys.executable, "-m", _MODULE, str(theirs.fileno()), settings.to_json()],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )
            self._connection = Connection(ours.detach())

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def is_running(self) -> bool:
        return self._popen.poll() is None

    def wait_until_ready(self) -> Ready:
        """Waits until the engine is loaded. Raises EngineStartError if it fails, dies or takes too long."""
        load_s = self._timeouts.load_s
        if not self._connection.poll(load_s):
            raise EngineStartError(f"The CPU engine did not load within {load_s:.0f} s.")
        try:
            message = self._connection.recv()
        except (EOFError, OSError) as error:
            raise EngineStartError("The CPU engine process died while loading; its log contains the reason.") from error
        if isinstance(message, LoadFailed):
            raise EngineStartError(f"The CPU engine can't load: {message.reason}")
        if not isinstance(message, Ready):
            raise EngineStartError("The CPU engine process sent an unexpected message while loading.")
        capacity = message.block_count * message.block_tokens
        _log.info("the CPU engine is ready; its KV cache has room for %d tokens", capacity)
        return message

    def send(self, message: AddRequest | Cancel) -> None:
        """Sends a message. Raises OSError if the process has ended or the socket is closed."""
        self._connection.send(message)

    def receive(self) -> object:
        """Waits for the next message. Raises EOFError or OSError if the process has ended."""
        return self._connection.recv()

    def close_connection(self) -> None:
        """Closes the socket, which makes the process end by itself."""
        self._connection.close()

    def terminate(self) -> None:
        """Sends SIGTERM."""
        self._popen.terminate()

    def kill(self) -> None:
        """Sends SIGKILL."""
        self._popen.kill()

    def reap(self) -> int | None:
        """Ends the process if it still runs. Returns its exit status, or None if it does not end."""
        return reap(self._popen, self._timeouts.end_s)


def reap(process: subprocess.Popen[bytes], timeout_s: float) -> int | None:
    """Ends a process with SIGTERM, then SIGKILL, waiting `timeout_s` after each.

    Returns its exit status, or None if it does not end: it hangs inside the kernel, and is left alone.
    """
    for end in (process.terminate, process.kill):
        end()
        with suppress(subprocess.TimeoutExpired):
            return process.wait(timeout_s)
    _log.error("the CPU engine process %d does not end; it is left alone", process.pid)
    return None
