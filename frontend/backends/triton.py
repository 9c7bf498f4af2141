"""Completes prompts through this project's ensemble: its tensors, and the cancellations for its decode model."""

from __future__ import annotations

import math
import time

from frontend.backends.cancel_messages import CancelSender
from frontend.backends.channel.client import ChannelClient
from frontend.backends.channel.session import Endpoint
from frontend.backends.generator import OnChunk, OnReport, ignore_report
from frontend.backends.grpc_channel import TritonChannel, infer_request, output_names
from frontend.backends.heartbeat import Heartbeat
from frontend.backends.stage_pulses import DEFAULT_PULSE_LIMITS, PulseLimits, StagePulses
from llm_pipeline.protocol.engine_metrics import EngineReport
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.protocol.messages import CompletionParameters
from llm_pipeline.protocol.model_info import ModelInfo
from llm_pipeline.protocol.tensors import (
    CLIENT_ID_PARAMETER,
    DECODE_MODEL,
    PREPROCESS_MODEL,
    cancel_arrays,
    describe_arrays,
    model_info_from_raw,
    parameters_to_arrays,
    renewal_arrays,
    stage_model,
    text_chunk_from_raw,
)

_IDLE_REPORT_S = 4.0  # age of a report after which an idle engine is asked for the next


class TritonGenerator:
    """A Generator that sends each prompt to the ensemble of one Triton."""

    def __init__(
        self,
        channel: TritonChannel,
        model: str,
        *,
        use_channels: bool = True,
        pulse_limits: PulseLimits = DEFAULT_PULSE_LIMITS,
        on_report: OnReport = ignore_report,
    ) -> None:
        """`use_channels`: all requests share one channel; otherwise each has a response stream of its own.

        `on_report` receives the engine's reports: while requests run, those on the channel, otherwise at least one in
        some seconds, as long as `is_ready` is called.
        """
        self._on_report = on_report
        self._reported_s = -math.inf  # monotonic
        self._running = 0  # requests
        self._channel = channel
        self._model = model
        self._preprocess = stage_model(model, PREPROCESS_MODEL)
        self._decode = decode = stage_model(model, DECODE_MODEL)
        self._heartbeat = Heartbeat(self._renew_lease)
        self._cancellations = CancelSender(channel, lambda key: infer_request(decode, cancel_arrays(key), key))
        endpoint = Endpoint(channel, model, self._cancellations.send, self._renew_lease, self._report)
        self._channels = ChannelClient(endpoint) if use_channels else None
        self._pulses = StagePulses(channel, model, pulse_limits, self._report)

    async def generate(self, parameters: CompletionParameters, on_chunk: OnChunk) -> None:
        """Runs one completion to its end. Raises PipelineError."""
        self._running += 1
        try:
            if self._channels is not None:
                await self._channels.generate(parameters, on_chunk)
            else:
                await self._generate_alone(parameters, on_chunk)
        finally:
            self._running -= 1

    async def _generate_alone(self, parameters: CompletionParameters, on_chunk: OnChunk) -> None:
        request = infer_request(
            self._model,
            parameters_to_arrays(parameters),
            parameters.request_id,
            parameters={CLIENT_ID_PARAMETER: self._heartbeat.client_id},
        )
        with self._heartbeat:
            async for response in self._channel.infer(request, parameters.trace):
                names = output_names(response)
                if names:
                    chunk = text_chunk_from_raw(names, response.raw_output_contents)
                    if not chunk.is_silent:
                        on_chunk(chunk)

    async def cancel(self, key: str) -> None:
        """Sends a cancellation to decode. Raises PipelineError (503)."""
        if self._channels is not None and self._channels.cancel_waiting(key):
            return
        await self._cancellations.send(key)

    async def get_model_info(self) -> ModelInfo:
        """Requests the model info from preprocess. Raises PipelineError (503)."""
        request = infer_request(self._preprocess, describe_arrays(), "describe")
        info: ModelInfo | None = None
        async for response in self._channel.infer(request):
            if names := output_names(response):
                info = model_info_from_raw(names, response.raw_output_contents)
        if info is None:
            raise PipelineError(ErrorCode.SERVICE_UNAVAILABLE, "Triton did not return a model description.")
        return info

    async def _renew_lease(self, client_id: str, received: int | None = None) -> None:
        await self._channel.infer_all([infer_request(self._decode, renewal_arrays(client_id, received), "lease")])

    async def is_ready(self) -> bool:
        """Whether Triton can be reached, has loaded the ensemble, and all stages answer while requests wait."""
        if not await self._channel.is_model_ready(self._model):
            return False
        if self._running:
            return await self._pulses.have_answers()
        if time.monotonic() - self._reported_s > _IDLE_REPORT_S:
            self._pulses.request_report()
        return True

    def _report(self, report: EngineReport) -> None:
        if report.numbers:
            self._reported_s = time.monotonic()
        self._on_report(report)

    @property
    def is_progressing(self) -> bool:
        """Whether the engine makes steps while requests wait, as of the last `is_ready`."""
        return not self._running or self._pulses.is_engine_progressing

    async def close(self) -> None:
        """Ends all requests and closes the connection."""
        if self._channels is not None:
            await self._channels.close()
        self._heartbeat.close()
        self._pulses.close()
        await self._channel.close()
