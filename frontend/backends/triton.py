"""Completes prompts through our ensemble: its tensors, and the stop messages that go to its decode model."""

from __future__ import annotations

from collections.abc import AsyncIterator

from frontend.backends.cancel_messages import CancelSender
from frontend.backends.grpc_channel import TritonChannel, infer_request, output_names
from frontend.backends.heartbeat import Heartbeat
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.protocol.messages import CompletionParameters, TextChunk
from llm_pipeline.protocol.model_info import ModelInfo
from llm_pipeline.protocol.tensors import (
    DECODE_MODEL,
    CLIENT_ID_PARAMETER,
    PREPROCESS_MODEL,
    cancel_arrays,
    describe_arrays,
    description_from_raw,
    parameters_to_arrays,
    renewal_arrays,
    stage_model,
    text_chunk_from_raw,
)


class TritonGenerator:
    """A Generator that sends each prompt to the ensemble of one Triton."""

    def __init__(self, channel: TritonChannel, model: str) -> None:
        self._channel = channel
        self._model = model
        self._preprocess = stage_model(model, PREPROCESS_MODEL)
        self._decode = decode = stage_model(model, DECODE_MODEL)
        self._lease = Heartbeat(self._renew_lease)
        self._stops = CancelSender(channel, lambda key: infer_request(decode, cancel_arrays(key), key))

    async def generate(self, parameters: CompletionParameters) -> AsyncIterator[TextChunk]:
        """See Generator."""
        request = infer_request(
            self._model,
            parameters_to_arrays(parameters),
            parameters.request_id,
            parameters={CLIENT_ID_PARAMETER: self._lease.owner},
        )
        with self._lease:
            async for response in self._channel.infer(request):
                names = output_names(response)
                if names:
                    chunk = text_chunk_from_raw(names, response.raw_output_contents)
                    if not chunk.is_silent:
                        yield chunk

    async def cancel(self, key: str) -> None:
        """See Generator."""
        await self._stops.send(key)

    async def get_model_info(self) -> ModelInfo:
        """See Generator."""
        request = infer_request(self._preprocess, describe_arrays(), "describe")
        found: ModelInfo | None = None
        async for response in self._channel.infer(request):
            if names := output_names(response):
                found = description_from_raw(names, response.raw_output_contents)
        if found is None:
            raise PipelineError(ErrorCode.SERVICE_UNAVAILABLE, "Triton does not say what it serves.")
        return found

    async def _renew_lease(self, owner: str) -> None:
        await self._channel.infer_all([infer_request(self._decode, renewal_arrays(owner), "lease")])

    async def is_ready(self) -> bool:
        """See Generator."""
        return await self._channel.is_model_ready(self._model)

    async def close(self) -> None:
        """See Generator."""
        self._lease.close()
        await self._channel.close()
