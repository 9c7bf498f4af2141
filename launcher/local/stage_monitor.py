"""Restarts a Triton in which the process of a stage hangs, while the server itself answers and reports it as ready.

Each stage gets a request of its own, past the ensemble, that it answers from its `execute` at once. A process that is
suspended gives no answer, or Triton's error that it is "not healthy", which is never mended for some models. Waiting
for one answer at a time matters: closing a connection cancels its request, which this Triton does not always survive.
"""

from __future__ import annotations

import http.client
import json
import logging
import selectors
import time
from collections.abc import Mapping, Sequence
from functools import partial

from launcher.local.liveness import KillableProcess
from launcher.triton_access import TritonAddresses
from llm_pipeline.protocol.tensors import (
    CHUNK,
    DECODE_MODEL,
    DESCRIBE,
    POSTPROCESS_MODEL,
    PREPROCESS_MODEL,
    PULSE,
    stage_model,
)
from llm_pipeline.runtime.subprocesses import PeriodicThread

_log = logging.getLogger(__name__)
STAGE_MESSAGES: Mapping[str, Mapping[str, object]] = {
    PREPROCESS_MODEL: {DESCRIBE.name: True},
    DECODE_MODEL: {PULSE.name: True},
    POSTPROCESS_MODEL: {CHUNK.name: ""},
}
_UNHEALTHY = b"is not healthy"  # in the error of Triton's Python backend
_POLL_PERIOD_S = 0.2  # for `close` while an answer is awaited


class StageMonitor:
    """Asks every stage of some ensembles each `period_s`, and kills Triton when one has not worked for `timeout_s`.

    A stage that has not answered since Triton's start is left alone, because loading an engine takes minutes.
    """

    def __init__(
        self,
        triton: KillableProcess,
        addresses: TritonAddresses,
        ensembles: Sequence[str],
        *,
        timeout_s: float,
        period_s: float = 1.0,
    ) -> None:
        self._triton = triton
        self._addresses = addresses
        self._timeout_s = timeout_s
        self._is_closing = False
        self._answered: dict[str, tuple[int | None, float]] = {}  # by model: in which process, and monotonic time
        self._threads = [
            PeriodicThread(partial(self._check, model, message), period_s=period_s, name=f"stage-{model}")
            for ensemble in ensembles
            for stage, message in STAGE_MESSAGES.items()
            if (model := stage_model(ensemble, stage))
        ]

    def start(self) -> None:
        """Starts asking."""
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Stops asking."""
        self._is_closing = True
        for thread in self._threads:
            thread.close()

    def _check(self, model: str, message: Mapping[str, object]) -> None:
        pid = self._triton.pid  # read first: an answer of this process proves nothing about its successor
        try:
            has_answered = self._ask(model, message)
        except (OSError, http.client.HTTPException):
            return  # the server is starting, or has ended
        if has_answered:
            self._answered[model] = pid, time.monotonic()
            return
        answered_pid, answered_s = self._answered.get(model, (None, 0.0))
        if pid is None or not pid == answered_pid == self._triton.pid or self._is_closing:
            return
        if time.monotonic() - answered_s >= self._timeout_s:
            _log.error("Triton's model %s has not answered for %.0f s. Restarting Triton.", model, self._timeout_s)
            self._triton.kill()
            del self._answered[model]

    def _ask(self, model: str, message: Mapping[str, object]) -> bool:
        """Returns whether the stage has answered in time, with a result or an error of its own."""
        connection = self._addresses.connect_http(self._timeout_s)
        try:
            connection.request("POST", f"/v2/models/{model}/generate", json.dumps(message))
            if not self._is_readable(connection):
                return False
            return _UNHEALTHY not in connection.getresponse().read()
        finally:
            connection.close()

    def _is_readable(self, connection: http.client.HTTPConnection) -> bool:
        """Waits for the first byte of an answer."""
        deadline = time.monotonic() + self._timeout_s
        with selectors.DefaultSelector() as selector:
            selector.register(connection.sock, selectors.EVENT_READ)
            while time.monotonic() < deadline and not self._is_closing:
                if selector.select(_POLL_PERIOD_S):
                    return True
        return False
