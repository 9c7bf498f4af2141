"""Cancels the requests of clients that are gone, and ends requests that the executor fails to end."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from llm_pipeline.protocol.messages import FinishReason, StepOutput
from llm_pipeline.stages.decode.live_requests import LiveRequests

_log = logging.getLogger(__name__)


class Housekeeper:
    """One check of all live requests. DecodeStage runs `tick` periodically.

    `cancel` is called with the key of every abandoned request, at each tick until it has ended. `on_steps` gets the
    endings of the overdue ones.
    """

    def __init__(
        self,
        live_requests: LiveRequests,
        *,
        cancel: Callable[[str], None],
        on_steps: Callable[[Sequence[StepOutput]], None],
    ) -> None:
        self._live_requests = live_requests
        self._cancel = cancel
        self._on_steps = on_steps

    def tick(self) -> None:
        """Advances leases and cancellation timeouts by one tick, and acts on those that have expired."""
        expired = self._live_requests.tick()
        if expired.newly_abandoned:
            _log.warning("a client's lease has expired; %d of its requests are cancelled", expired.newly_abandoned)
        for key in expired.abandoned:
            self._cancel(key)
        if expired.overdue:
            _log.error("the executor has not ended %d cancelled requests; they end here", len(expired.overdue))
            self._on_steps([StepOutput(key, finish_reason=FinishReason.CANCELLED) for key in expired.overdue])
