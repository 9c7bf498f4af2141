"""Runs the commands of a plan one at a time and appends their output to one log file."""

from __future__ import annotations

import subprocess
import sys
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from build_engine.errors import BuildEngineError
from build_engine.gpu.planning.commands import PYTHON
from build_engine.progress import BuildProgress

_TAIL_LINES = 8  # of the output, repeated in the error message


class StepRunner:
    def __init__(self, log: Path, lock: int, progress: BuildProgress) -> None:
        self._log = log
        self._lock = lock  # file descriptor; inherited by the commands, so that the lock lasts as long as they run
        self._progress = progress

    def skip(self, name: str) -> None:
        self._progress.note(f"{name}: reused from an earlier build.")

    def run(self, name: str, argv: Sequence[str]) -> None:
        """Raises BuildEngineError with the end of the output if the command fails."""
        command = [sys.executable if argv[0] == PYTHON else argv[0], *argv[1:]]
        with self._progress.step(f"{name} (log: {self._log.name})"):
            status, tail = self._run_logged(command)
        if status != 0:
            ending = f"was killed by signal {-status}" if status < 0 else f"failed (status {status})"
            raise BuildEngineError(f"Step {name} {ending}. Complete log: {self._log}\n" + "".join(tail).rstrip())

    def _run_logged(self, command: Sequence[str]) -> tuple[int, deque[str]]:
        tail: deque[str] = deque(maxlen=_TAIL_LINES)
        with (
            self._log.open("a", encoding="utf-8") as log,
            subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                pass_fds=[self._lock],
            ) as process,
        ):
            assert process.stdout
            try:
                for line in process.stdout:
                    tail.append(line)
                    log.write(line)
                    log.flush()
            except BaseException:
                process.kill()
                raise
        return process.returncode, tail
