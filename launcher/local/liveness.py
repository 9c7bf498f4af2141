"""Kills a Triton that can no longer serve, so that its supervisor restarts it.

LivenessMonitor  the server runs but has stopped answering: it is suspended or deadlocked, and would never exit
StubMonitor      the process of a Python model has died, and Triton does not restart it
"""

from __future__ import annotations

import http.client
import logging
from typing import Protocol

from launcher.stub_monitor import POLL_PERIOD_S, StubInventory
from launcher.triton_access import TritonAddresses
from llm_pipeline.runtime.subprocesses import PeriodicThread

_log = logging.getLogger(__name__)


class KillableProcess(Protocol):
    """A supervised process: killing it restarts it, under another process id."""

    @property
    def pid(self) -> int | None:
        """Process id of the current process; None before the first start."""

    def kill(self) -> None:
        """Kills the current process and its children."""


class LivenessMonitor:
    """Polls Triton's liveness endpoint on a thread, and kills the process after `timeout_s` without an answer.

    A process that has never answered is left alone, because loading an engine takes minutes. Only the server's own
    liveness is polled: a model that does not answer has other causes, which a restart does not fix.
    """

    def __init__(
        self, triton: KillableProcess, addresses: TritonAddresses, *, timeout_s: float, period_s: float = 1.0
    ) -> None:
        self._triton = triton
        self._addresses = addresses
        self._timeout_s = timeout_s
        self._period_s = period_s
        self._answered_pid: int | None = None  # the process that has answered at least once
        self._silent_s = 0.0
        self._thread = PeriodicThread(self._check, period_s=period_s, name="triton-liveness")

    def start(self) -> None:
        """Starts polling."""
        self._thread.start()

    def close(self) -> None:
        """Stops polling."""
        self._thread.close()

    def _check(self) -> None:
        pid = self._triton.pid  # read first: an answer of this process proves nothing about its successor
        if self._is_live():
            self._answered_pid, self._silent_s = pid, 0.0
        elif pid == self._answered_pid:
            self._silent_s += 2 * self._period_s  # the period, and the timeout of the probe
        if self._silent_s >= self._timeout_s:
            _log.error("Triton has not answered for %.0f s. Restarting it.", self._silent_s)
            self._triton.kill()
            self._answered_pid, self._silent_s = None, 0.0

    def _is_live(self) -> bool:
        connection = self._addresses.connect_http(self._period_s)
        try:
            connection.request("GET", "/v2/health/live")
            return connection.getresponse().status == http.client.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()


class StubMonitor:
    """Polls Triton's stub processes on a thread, and kills the server once a model has lost one permanently.

    Create it when all models are loaded: the stubs of that moment are the baseline for the first process.
    """

    def __init__(self, triton: KillableProcess, *, period_s: float = POLL_PERIOD_S) -> None:
        self._triton = triton
        self._pid, self._inventory = triton.pid, StubInventory(triton.pid or 0)
        self._inventory.poll()  # the baseline: a stub that dies before the first period has passed is missed too
        self._thread = PeriodicThread(self._check, period_s=period_s, name="triton-stubs")

    def start(self) -> None:
        """Starts polling."""
        self._thread.start()

    def close(self) -> None:
        """Stops polling."""
        self._thread.close()

    def _check(self) -> None:
        pid = self._triton.pid
        if pid is None:
            return
        if pid != self._pid:
            self._pid, self._inventory = pid, StubInventory(pid)
        if (model := self._inventory.poll()) and not self._thread.is_closed:
            _log.error("The process of Triton's model %s has died. Restarting Triton.", model)
            self._triton.kill()
            self._inventory = StubInventory(pid)
