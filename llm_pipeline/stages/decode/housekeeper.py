"""Cancels the requests of clients that are gone, and ends requests that the executor fails to end."""

from __future__ import annotations

import logging
from collections.abc import Callable

from llm_pipeline.protocol.messages import EngineStep, FinishReason, RequestEnd, ends_only
from llm_pipeline.stages.decode.live_requests import LiveRequests

_log = logging.getLogger(__name__)


class Housekeeper:
    """One check of all live requests. DecodeStage runs `tick` periodically.

    `cancel` is called with the number of every abandoned request, at each tick until it has ended. `on_step` gets the
    ends of the overdue ones.
    """

    def __init__(
        self,
        live_requests: LiveRequests,
        *,
        cancel: Callable[[int], None],
        on_step: Callable[[EngineStep], None],
    ) -> None:
        self._live_requests = live_requests
        self._cancel = cancel
        self._on_step = on_step

    def tick(self) -> None:
        """Advances leases and cancellation timeouts by one tick, and acts on those that have expired."""
        expired = self._live_requests.tick()
        if expired.newly_abandoned:
            _log.warning("a client's lease has expired; %d of its requests are cancelled", expired.newly_abandoned)
        for number in expired.abandoned:
            self._cancel(number)
        if expired.overdue:
            _log.error("the executor has not ended %d cancelled requests; they end here", len(expired.overdue))
            self._on_step(ends_only([RequestEnd(number, FinishReason.CANCELLED) for number in expired.overdue]))
