"""Starts the process of the hostile clients for one phase, and reads its report."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import orjson

from benchmarks.siege.load import STARTED, LoadJob, LoadReport

_START_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 10.0


class LoadError(Exception):
    """The process of the hostile clients does not start, or has no report. The message gives the reason."""


class RunningLoad:
    """A running process of hostile clients."""

    def __init__(self, process: subprocess.Popen[bytes], errors: IO[bytes]) -> None:
        self._process = process
        self._errors = errors
        self._output = b""
        self._reader = threading.Thread(target=self._read, name="siege-load", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        self._output = self._process.stdout.read()

    @property
    def has_ended(self) -> bool:
        """Whether the process has ended by itself."""
        return self._process.poll() is not None

    def report(self) -> LoadReport:
        """Returns what the requests got. Ends a process that is still running.

        Raises LoadError if it has not ended by itself, or has failed.
        """
        if not self.has_ended:
            self._process.kill()
        status = self._process.wait(_STOP_TIMEOUT_S)
        self._reader.join(_STOP_TIMEOUT_S)
        if status == 0:
            return LoadReport(**orjson.loads(self._output))
        self._errors.seek(0)
        last = self._errors.read().decode(errors="replace").strip().splitlines()[-1:]
        reason = last[0] if last else "it did not end in time" if status < 0 else f"status {status}"
        raise LoadError(f"the process of the hostile clients failed: {reason}")


@contextmanager
def running_load(job: LoadJob) -> Iterator[RunningLoad]:
    """Runs a job for a block, which begins when its clients do.

    Raises LoadError if the process does not start.
    """
    with tempfile.TemporaryFile() as source, tempfile.TemporaryFile() as errors:
        source.write(job.to_json())
        source.seek(0)
        command = [sys.executable, "-m", "benchmarks.siege.load"]
        process = subprocess.Popen(command, stdin=source, stdout=subprocess.PIPE, stderr=errors)
        assert process.stdout is not None
        give_up = threading.Timer(_START_TIMEOUT_S, process.kill)
        give_up.start()
        try:
            if process.stdout.readline() != STARTED:
                errors.seek(0)
                raise LoadError(f"the hostile clients do not start: {errors.read().decode(errors='replace')[-800:]}")
            give_up.cancel()
            yield RunningLoad(process, errors)
        finally:
            give_up.cancel()
            process.kill()
            process.wait()
            process.stdout.close()
