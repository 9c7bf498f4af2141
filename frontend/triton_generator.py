"""Completes prompts through Triton's ensemble: its tensors, and the stop messages that go to its decode model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from frontend.lease import Lease
from frontend.triton_channel import TritonChannel, infer_request, output_names
from llm_pipeline.description import ModelDescription
from llm_pipeline.errors import ErrorCode, PipelineError
from llm_pipeline.messages import CompletionParameters, TextChunk
from llm_pipeline.tensors import (
    DECODE_MODEL,
    OWNER_PARAMETER,
    PREPROCESS_MODEL,
    describe_arrays,
    description_from_raw,
    parameters_to_arrays,
    renewal_arrays,
    stop_arrays,
    text_chunk_from_raw,
)

_STOP_TIMEOUT_S = 5.0


class TritonGenerator:
    """A Generator that sends each prompt to the ensemble of one Triton."""

    def __init__(self, channel: TritonChannel, model: str) -> None:
        self._channel = channel
        self._model = model
        self._lease = Lease(self._renew_lease)
        self._stops: list[str] = []
        self._delivery: asyncio.Task[None] | None = None

    async def generate(self, parameters: CompletionParameters) -> AsyncIterator[TextChunk]:
        """See Generator."""
        request = infer_request(
            self._model,
            parameters_to_arrays(parameters),
            parameters.request_id,
            parameters={OWNER_PARAMETER: self._lease.owner},
        )
        with self._lease:
            async for response in self._channel.infer(request):
                names = output_names(response)
                if names:
                    yield text_chunk_from_raw(names, response.raw_output_contents)

    async def stop(self, key: str) -> None:
        """See Generator. Keys that are stopped in the same moment share one call."""
        self._stops.append(key)
        if self._delivery is None:
            self._delivery = asyncio.create_task(self._deliver_stops())
            # Its failure counts as seen even when everybody has stopped waiting for it.
            self._delivery.add_done_callback(lambda task: task.cancelled() or task.exception())
        delivery = self._delivery
        # Waiting is bounded but the call is not cancelled: that is the race in this Triton version.
        done, _ = await asyncio.wait({delivery}, timeout=_STOP_TIMEOUT_S)
        if not done:
            raise PipelineError(ErrorCode.SERVICE_UNAVAILABLE, "Triton does not answer a stop message.")
        delivery.result()

    async def _deliver_stops(self) -> None:
        await asyncio.sleep(0)  # let everybody who stops something in this turn of the loop add a key
        keys, self._stops, self._delivery = self._stops, [], None
        await self._channel.infer_all([infer_request(DECODE_MODEL, stop_arrays(key), key) for key in keys])

    async def describe(self) -> ModelDescription:
        """See Generator."""
        request = infer_request(PREPROCESS_MODEL, describe_arrays(), "describe")
        found: ModelDescription | None = None
        async for response in self._channel.infer(request):
            if names := output_names(response):
                found = description_from_raw(names, response.raw_output_contents)
        if found is None:
            raise PipelineError(ErrorCode.SERVICE_UNAVAILABLE, "Triton does not say what it serves.")
        return found

    async def _renew_lease(self, owner: str) -> None:
        await self._channel.infer_all([infer_request(DECODE_MODEL, renewal_arrays(owner), "lease")])

    async def is_ready(self) -> bool:
        """See Generator."""
        return await self._channel.is_model_ready(self._model)

    async def close(self) -> None:
        """See Generator."""
        self._lease.close()
        await self._channel.close()
