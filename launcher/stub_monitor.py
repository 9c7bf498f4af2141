"""Tracks the processes ("stubs") in which a Triton server runs its Python models, and detects dead ones.

Triton 2.51 never restarts the dead stub of a decoupled model, and that of preprocess not always: every later request
to it fails with "Stub process 'decode_0_0' is not healthy" (both seen), while the server reports live and ready. So the
parent of the server has to poll.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from llm_pipeline.runtime.process_tree import child_pids, command_line, process_name

POLL_PERIOD_S = 0.5
_MISSING_POLLS = 2  # consecutive polls: a single one may fall between the end of one process and its successor
_STUB_NAME = "triton_python_b"  # the kernel truncates process names to 15 characters
_PROC = Path("/proc")


class StubInventory:
    """Compares the stubs of one server, over successive polls, with the most that each model has had."""

    def __init__(self, server_pid: int) -> None:
        self._server_pid = server_pid
        self._max_stubs: Counter[str] = Counter()  # by model
        self._missing_polls = 0

    def poll(self) -> str | None:
        """Returns the model that has lacked a stub for `_MISSING_POLLS` polls in a row; None if all are present."""
        stubs = count_stubs(self._server_pid)
        if stubs is None:
            return None  # the server itself has ended; its parent notices
        self._max_stubs |= stubs
        missing = sorted(self._max_stubs - stubs)
        self._missing_polls = self._missing_polls + 1 if missing else 0
        return missing[0] if self._missing_polls >= _MISSING_POLLS else None


def count_stubs(server_pid: int) -> Counter[str] | None:
    """Returns the number of living stubs by model name; None if there is no such server."""
    if not (_PROC / str(server_pid)).exists():
        return None
    return Counter(name for pid in child_pids(server_pid) if (name := _model_of(pid)))


def _model_of(pid: int) -> str | None:
    """Returns the model of a stub, whose arguments contain MODEL/VERSION/model.py; None for other processes."""
    if not process_name(pid).startswith(_STUB_NAME):
        return None
    return next((Path(part).parts[-3] for part in command_line(pid) if part.endswith("/model.py")), None)
