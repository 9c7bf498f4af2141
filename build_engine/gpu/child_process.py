"""Calls a module in a child process, with JSON for its request and its response.

Importing TensorRT-LLM starts MPI, and GPU memory is released only when its process ends. The request is read from
standard input; the response is written to a file, since upstream prints on standard output.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from build_engine.errors import BuildEngineError

TIMEOUT_S = 3600.0  # loading a large model takes minutes; if one rank dies, the others never return
_TAIL_CHARACTERS = 800


def call_module(module: str, request: dict[str, Any], subject: str, timeout_s: float = TIMEOUT_S) -> dict[str, Any]:
    """Runs `python -m module RESPONSE_FILE` and returns the response. `subject` is named in errors.

    Raises BuildEngineError with the end of the output if the module fails, or has not finished within the limit.
    """
    with tempfile.TemporaryDirectory() as directory:
        response, output = Path(directory) / "response.json", Path(directory) / "output.txt"
        status = _run([sys.executable, "-m", module, str(response)], json.dumps(request), output, timeout_s)
        if status is None:
            raise BuildEngineError(f"TensorRT-LLM did not finish with {subject} within {timeout_s:.0f} s.")
        if status != 0 or not response.exists():
            tail = output.read_text(encoding="utf-8", errors="replace").strip()[-_TAIL_CHARACTERS:]
            raise BuildEngineError(f"TensorRT-LLM {_ending(status)}: {tail}")
        values: dict[str, Any] = json.loads(response.read_bytes())
        return values


def _run(command: list[str], text: str, output: Path, timeout_s: float) -> int | None:
    """The exit status; None after the time limit. The output goes to a file, because ranks that outlive the process
    would keep a pipe open.
    """
    with (
        output.open("wb") as file,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        ) as process,
    ):
        try:
            process.communicate(text.encode(), timeout_s)
        except subprocess.TimeoutExpired:
            return None
        finally:
            with suppress(ProcessLookupError):  # also ends ranks that the process has left behind in its group
                os.killpg(process.pid, signal.SIGKILL)
    return process.returncode


def _ending(status: int) -> str:
    return f"was killed by signal {-status}" if status < 0 else f"exited with status {status}"
