"""Stop messages to one Triton model: those of the same moment share a call, and no call is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from frontend.backends.grpc_channel import InferRequest, TritonChannel
from llm_pipeline.protocol.errors import ErrorCode, PipelineError

_TIMEOUT_S = 5.0


class CancelSender:
    """`make_request` makes the message that ends the request with a key."""

    def __init__(self, channel: TritonChannel, make_request: Callable[[str], InferRequest]) -> None:
        self._channel = channel
        self._make_request = make_request
        self._keys: list[str] = []
        self._delivery: asyncio.Task[None] | None = None

    async def send(self, key: str) -> None:
        """Returns when the model has answered. PipelineError when it can't be told."""
        self._keys.append(key)
        if self._delivery is None:
            self._delivery = asyncio.create_task(self._deliver())
            # Its failure counts as seen even when everybody has stopped waiting for it.
            self._delivery.add_done_callback(lambda task: task.cancelled() or task.exception())
        delivery = self._delivery
        # Waiting is bounded but the call is not cancelled: that is the race in this Triton version.
        done, _ = await asyncio.wait({delivery}, timeout=_TIMEOUT_S)
        if not done:
            raise PipelineError(ErrorCode.SERVICE_UNAVAILABLE, "Triton does not answer a stop message.")
        delivery.result()

    async def _deliver(self) -> None:
        await asyncio.sleep(0)  # let everybody who stops something in this turn of the loop add a key
        keys, self._keys, self._delivery = self._keys, [], None
        await self._channel.infer_all([self._make_request(key) for key in keys])
