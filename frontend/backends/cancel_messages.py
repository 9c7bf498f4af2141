"""Sends cancellation messages to one Triton model. Messages of the same moment share one call."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from frontend.backends.grpc_channel import InferRequest, TritonChannel
from llm_pipeline.protocol.errors import ErrorCode, PipelineError


class CancelSender:
    """Sends cancellations by request key. `make_request` builds the message for a key."""

    def __init__(
        self, channel: TritonChannel, make_request: Callable[[str], InferRequest], *, timeout_s: float = 5.0
    ) -> None:
        self._channel = channel
        self._make_request = make_request
        self._timeout_s = timeout_s
        self._keys: list[str] = []
        self._delivery: asyncio.Task[None] | None = None

    async def send(self, key: str) -> None:
        """Returns when the model has received the message. Raises PipelineError (503) if it cannot be delivered."""
        self._keys.append(key)
        if self._delivery is None:
            self._delivery = asyncio.create_task(self._deliver())
            # Retrieves the exception, also if all senders have timed out: asyncio would log it as never retrieved.
            self._delivery.add_done_callback(lambda task: task.cancelled() or task.exception())
        delivery = self._delivery
        # The wait has a timeout, but the call is not cancelled: this Triton version may crash when a call is.
        done, _ = await asyncio.wait({delivery}, timeout=self._timeout_s)
        if not done:
            raise PipelineError(ErrorCode.SERVICE_UNAVAILABLE, "Triton did not confirm the cancellation in time.")
        delivery.result()

    async def _deliver(self) -> None:
        await asyncio.sleep(0)  # lets other tasks of this iteration of the event loop add their keys
        keys, self._keys, self._delivery = self._keys, [], None
        await self._channel.infer_all([self._make_request(key) for key in keys])
