"""Restarts Triton when the process of one of its Python models has died for good."""

from __future__ import annotations

import logging
import threading

from launcher.local.processes import ChildProcess
from launcher.stub_monitor import PERIOD_S, StubInventory

_log = logging.getLogger(__name__)


class StubMonitor:
    """Looks at Triton's children twice a second, in a thread of its own. Made when all of them run."""

    def __init__(self, triton: ChildProcess) -> None:
        self._triton = triton
        self._pid, self._census = triton.pid, StubInventory(triton.pid or 0)
        self._census.look()  # now, while all is known to be well: one that dies before the next look is missed, too
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="stub-watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closed.set()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        while not self._closed.wait(PERIOD_S):
            pid = self._triton.pid
            if pid is None:
                continue
            if pid != self._pid:
                self._pid, self._census = pid, StubInventory(pid)
            if (model := self._census.look()) and not self._closed.is_set():
                _log.error("the process of Triton's model %s has died; starting Triton again", model)
                self._triton.kill()
                self._census = StubInventory(pid)
