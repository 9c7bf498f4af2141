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
_ROUNDS = 10


def call_module(module: str, request: dict[str, Any], subject: str, timeout_s: float = TIMEOUT_S) -> dict[str, Any]:
    """Runs `python -u -m module RESPONSE_FILE` and returns the response. `subject` is named in errors.

    Unbuffered, so that the end of the output is what was written last.

    Raises BuildEngineError with the end of the output if the module fails, or has not finished within the limit.
    """
    with tempfile.TemporaryDirectory() as directory:
        response, output = Path(directory) / "response.json", Path(directory) / "output.txt"
        status = _run([sys.executable, "-u", "-m", module, str(response)], json.dumps(request), output, timeout_s)
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
            _end_session(process.pid)
    return process.returncode


def _end_session(session: int) -> None:
    """Kills the process and the ranks that MPI has started for it, which hold GPU memory and outlive it.

    Ranks are in process groups of their own, but in its session. One that starts while the others end is found in the
    next round.
    """
    for _ in range(_ROUNDS):
        members = [int(name) for name in os.listdir("/proc") if name.isdigit() and _is_member(int(name), session)]
        for pid in members:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if not members:
            return


def _is_member(pid: int, session: int) -> bool:
    try:
        return os.getsid(pid) == session
    except ProcessLookupError:
        return False


def _ending(status: int) -> str:
    return f"was killed by signal {-status}" if status < 0 else f"exited with status {status}"
