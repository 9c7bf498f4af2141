"""Restarts a Triton that runs and does not answer: its process is stopped or stuck, so that nothing else would end it.

Triton's own liveness is asked, not the model's: a model that does not answer has other reasons and other remedies.
"""

from __future__ import annotations

import http.client
import logging
import threading

from launcher.local.processes import ChildProcess

_log = logging.getLogger(__name__)
_PERIOD_S = 1.0


class LivenessMonitor:
    """Asks Triton whether it lives, every second or two, in a thread of its own; kills it after `limit_s` of silence.

    A Triton that has just been started counts only from its first answer on: loading an engine takes its time.
    """

    def __init__(self, triton: ChildProcess, http_port: int, *, limit_s: float) -> None:
        self._triton = triton
        self._http_port = http_port
        self._limit_s = limit_s
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="health-watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closed.set()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        known, silent_s = None, 0.0  # the process that has answered
        while not self._closed.wait(_PERIOD_S):
            asked = self._triton.pid  # before: the answer of one process says nothing about its successor
            if self._is_alive():
                known, silent_s = asked, 0.0
            elif known == asked:
                silent_s += 2 * _PERIOD_S  # the pause, and the wait for an answer
            if silent_s >= self._limit_s:
                _log.error("Triton has not answered for %.0f s; starting it again", silent_s)
                self._triton.kill()
                known, silent_s = None, 0.0

    def _is_alive(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self._http_port, timeout=_PERIOD_S)
        try:
            connection.request("GET", "/v2/health/live")
            return connection.getresponse().status == http.client.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()
