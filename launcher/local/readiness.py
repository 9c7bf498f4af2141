"""Waits until every model of a starting stack answers; reports why a process has ended instead."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Sequence

import httpx

from launcher.local.errors import StartCancelledError, StartError
from launcher.local.processes import ChildProcess

_POLL_PERIOD_S = 0.1
# An engine that cannot be loaded raises one of these in decode; Triton quotes it among many lines of its own.
_ENGINE_ERROR = re.compile(r"(?:ManifestError|EngineStartError): ([^\"\\]+)")


def wait_until_ready(
    base_url: str,
    models: Sequence[str],
    children: Sequence[ChildProcess],
    *,
    timeout_s: float,
    cancelled: threading.Event,
) -> None:
    """Returns when /health/ready has confirmed each model.

    Raises StartError if a child exits or the timeout passes, StartCancelledError if `cancelled` is set.
    """
    deadline = time.monotonic() + timeout_s
    pending = list(models)
    with httpx.Client(timeout=5, trust_env=False) as client:
        while time.monotonic() < deadline:
            for child in children:
                if not child.is_alive:
                    raise _exited(child)
            try:
                while pending and _is_ready(client, base_url, pending[0]):
                    pending.pop(0)
            except httpx.TransportError:
                pass  # not listening yet
            if not pending:
                return
            if cancelled.wait(_POLL_PERIOD_S):
                raise StartCancelledError
    raise StartError(
        f"{pending[0]} did not answer within {timeout_s:.0f} s. If it only needs longer, set START_TIMEOUT_S to more "
        "seconds.",
        log_tail="\n".join(_log_tail(child) for child in children),
    )


def _is_ready(client: httpx.Client, base_url: str, model: str) -> bool:
    return client.get(f"{base_url}/health/ready", params={"model": model}).status_code == httpx.codes.OK


def _exited(child: ChildProcess) -> StartError:
    """Returns the engine's error, if the log contains one; otherwise an error with the last lines of the log."""
    if error := _ENGINE_ERROR.search(child.last_lines(200)):
        return StartError(f"{error[1].strip()} The whole log: {child.log_path}")
    return StartError(
        f"{child.name} exited during startup. The lines above are the end of {child.log_path}.",
        log_tail=child.last_lines(),
    )


def _log_tail(child: ChildProcess) -> str:
    return f"The end of {child.log_path}:\n{child.last_lines()}"
