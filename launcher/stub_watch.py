"""Restarts Triton when the process of one of its Python models has died.

Triton 2.51 starts a dead stub again by itself only for models that are not decoupled; decode and postprocess are, and
every request to them fails for good with "Stub process 'decode_0_0' is not healthy" (measured).
"""

from __future__ import annotations

import logging
import threading

import psutil

from launcher.processes import ChildProcess

_log = logging.getLogger(__name__)
_STUB_NAME = "triton_python_backend_stub"
_PERIOD_S = 0.5
_PATIENCE = 4  # looks; Triton needs about a second where it starts a stub again by itself


class StubWatch:
    """Looks at Triton's children twice a second, in a thread of its own. Make it when all of them run."""

    def __init__(self, triton: ChildProcess, *, stub_count: int) -> None:
        self._triton = triton
        self._stub_count = stub_count
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="stub-watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closed.set()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        pid, was_complete, looks = self._triton.pid, True, 0
        while not self._closed.wait(_PERIOD_S):
            if self._triton.pid != pid:
                pid, was_complete, looks = self._triton.pid, False, 0
            is_complete = self._count_stubs(pid) >= self._stub_count
            looks = 0 if is_complete or not was_complete else looks + 1
            was_complete = was_complete or is_complete
            if looks >= _PATIENCE:
                _log.error("the process of one of Triton's models has died; starting Triton again")
                self._triton.kill()
                was_complete, looks = False, 0

    def _count_stubs(self, pid: int | None) -> int:
        try:
            children = psutil.Process(pid).children()
            return sum(_STUB_NAME[:15] in child.name() and child.status() != psutil.STATUS_ZOMBIE for child in children)
        except psutil.Error:
            return 0
