"""Runs a server program of others for a block: starts it, waits until it answers, stops it."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

_START_TIMEOUT_S = 240.0
_STOP_TIMEOUT_S = 60.0
_POLL_S = 0.1
_LOG_TAIL = 800  # characters


class ServerError(Exception):
    """A server cannot be reached or does not start. The message names it and the cause."""


@contextmanager
def running_program(
    command: Sequence[str],
    *,
    log: Path,
    is_ready: Callable[[], bool],
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[int]:
    """Yields the process id of the program once `is_ready` returns True; stops the program at the end.

    Raises ServerError, with the end of its log, if it cannot be started, ends by itself, or is not ready in time.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        try:
            process = subprocess.Popen(
                command,
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        except OSError as error:
            raise ServerError(f"{command[0]} cannot be started: {error}") from error
    try:
        _wait_until(is_ready, process, command[0], log)
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until(is_ready: Callable[[], bool], process: subprocess.Popen[bytes], name: str, log: Path) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    cause = f"was not ready within {_START_TIMEOUT_S:.0f} s"
    while time.monotonic() < deadline:
        if (status := process.poll()) is not None:
            cause = f"ended with status {status}"
            break
        if is_ready():
            return
        time.sleep(_POLL_S)
    raise ServerError(f"{name} {cause}. The end of {log}:\n{log.read_text(errors='replace')[-_LOG_TAIL:]}")
