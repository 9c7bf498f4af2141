"""Completes prompts through a Triton that serves NVIDIA's own models: inflight_batcher_llm's ensemble or its BLS model.

Fields without an input are rejected by name; the inputs are read from Triton's model metadata. As with this project's
ensemble, cancelling a call does not reach a request that is already running, so a cancellation goes to the engine model
as NVIDIA's own message: `stop`, with the request's id. The BLS model assigns its requests new ids, which no message can
address.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

import structlog

from frontend.backends.cancel_messages import CancelSender
from frontend.backends.generator import OnChunk
from frontend.backends.grpc_channel import InferRequest, InferResponse, TritonChannel, infer_request, output_names
from frontend.backends.inflight_batcher.tensors import (
    NUM_INPUT_TOKENS,
    NUM_OUTPUT_TOKENS,
    REQUIRED_INPUTS,
    TEXT_OUTPUT,
    engine_cancel_arrays,
    request_arrays,
)
from frontend.backends.inflight_batcher.text import CompletionText
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.protocol.messages import CompletionParameters, FinishReason
from llm_pipeline.protocol.model_info import ModelInfo
from llm_pipeline.runtime.deployment import DeployedModel

log = structlog.get_logger(__name__)
_DEFAULT_MAX_TOKENS = 16  # the default of the API; the model requires a number

# Texts of NVIDIA's and TensorRT-LLM's errors that have a code here. The texts may contain paths, so clients do not get
# them.
_KNOWN_FAILURES = (
    (
        re.compile(r"(prompt|input) length.*exceed|exceeds? max(imum)?[_ ](input|seq)", re.IGNORECASE | re.DOTALL),
        ErrorCode.CONTEXT_LENGTH_EXCEEDED,
        "The prompt exceeds the maximum input length of this model. Shorten the prompt.",
        "prompt",
    ),
    (
        re.compile(r"maximum queue size|queue is full", re.IGNORECASE),
        ErrorCode.QUEUE_FULL,
        "The engine's queue is full. Retry after the delay in the Retry-After header.",
        None,
    ),
    (
        re.compile(r"streaming is only supported in decoupled mode", re.IGNORECASE),
        ErrorCode.UNSUPPORTED_PARAMETER,
        "This model is deployed without streaming (decoupled_mode is off). Omit stream.",
        "stream",
    ),
    (
        re.compile(r"lora.*(not found|not cached)", re.IGNORECASE | re.DOTALL),
        ErrorCode.SERVICE_UNAVAILABLE,
        "The LoRA adapter of this model is not loaded. Retry the request.",
        None,
    ),
)


def read_failure(details: str) -> PipelineError | None:
    """The error for a failure of NVIDIA's models; None if its text is not recognized."""
    if error := PipelineError.from_wire(details):  # this project's ensemble has the same tensor names
        return error
    for pattern, code, message, param in _KNOWN_FAILURES:
        if pattern.search(details):
            return PipelineError(code, message, param=param)
    return None


class InflightBatcherGenerator:
    """A Generator that sends each prompt to NVIDIA's ensemble on one Triton. `channel` must use `read_failure`."""

    def __init__(self, channel: TritonChannel, model: DeployedModel) -> None:
        self._channel = channel
        self._model = model
        self._inputs: frozenset[str] | None = None  # None: not read yet
        self._live: dict[str, CompletionText] = {}
        self._ids: dict[str, str] = {}  # Triton's request ids, by request key
        self._cancellations = CancelSender(channel, self._cancel_request)

    @property
    def is_progressing(self) -> bool:
        """True: NVIDIA's ensemble does not report it."""
        return True

    async def generate(self, parameters: CompletionParameters, on_chunk: OnChunk) -> None:
        """Runs one completion to its end. Raises PipelineError, (400) for fields without an input."""
        max_tokens = parameters.max_tokens or self._model.default_max_tokens or _DEFAULT_MAX_TOKENS
        arrays = request_arrays(
            parameters, await self._known_inputs(), max_tokens=max_tokens, lora_task_id=self._model.lora_task_id
        )
        key = parameters.request_key
        # Live requests with the same id would overwrite each other in Triton, so the key is part of the id.
        self._ids[key] = f"{parameters.request_id}.{key}"
        text = self._live[key] = CompletionText(
            parameters,
            max_tokens=max_tokens,
            context_length=self._model.max_model_len,
            is_cumulative=self._model.cumulative_text,
        )
        try:
            request = infer_request(self._model.ensemble, arrays, self._ids[key])
            await self._run(self._channel.infer(request, parameters.trace), text, key, on_chunk)
        finally:
            del self._live[key], self._ids[key]

    async def _run(
        self, responses: AsyncIterator[InferResponse], text: CompletionText, key: str, on_chunk: OnChunk
    ) -> None:
        async for response in responses:
            outputs = dict(zip(output_names(response), response.raw_output_contents, strict=True))
            if TEXT_OUTPUT not in outputs:
                continue
            chunk = text.push(
                _first_string(outputs[TEXT_OUTPUT]),
                _first_int32(outputs.get(NUM_OUTPUT_TOKENS)) or 0,
                _first_int32(outputs.get(NUM_INPUT_TOKENS)),
            )
            if chunk is not None:
                on_chunk(chunk)
                if chunk.finish_reason is FinishReason.STOP:  # a stop string, which the engine may not have matched
                    await self._cancel_after_match(key)
        last = text.end()
        if last is not None:
            on_chunk(last)

    async def cancel(self, key: str) -> None:
        """Sends a cancellation to the engine model. Raises PipelineError (503)."""
        if key in self._live:  # else the request has ended, or not started: the caller repeats the cancellation
            self._live[key].is_cancelled = True
            await self._cancellations.send(key)

    async def get_model_info(self) -> ModelInfo:
        """Raises PipelineError (400): NVIDIA's ensemble has no model that returns this."""
        raise PipelineError(ErrorCode.UNSUPPORTED_PARAMETER, "NVIDIA's ensemble does not report model info.")

    async def is_ready(self) -> bool:
        """Whether Triton can be reached, has loaded the ensemble, and the ensemble has the required inputs."""
        if not await self._channel.is_model_ready(self._model.ensemble):
            self._inputs = None  # the next one may be another version
            return False
        try:
            await self._known_inputs()
        except PipelineError as error:
            log.warning("model_not_usable", model=self._model.name, reason=error.message)
            return False
        return True

    async def close(self) -> None:
        """Closes the connection."""
        await self._channel.close()

    async def _known_inputs(self) -> frozenset[str]:
        if self._inputs is None:
            inputs = await self._channel.model_inputs(self._model.ensemble)
            if missing := REQUIRED_INPUTS - inputs:
                raise PipelineError(
                    ErrorCode.SERVICE_UNAVAILABLE,
                    f"The Triton model {self._model.ensemble} does not have the inputs {', '.join(sorted(missing))}. "
                    "It must be NVIDIA's inflight_batcher_llm of TensorRT-LLM 1.0 or later.",
                )
            self._inputs = inputs
        return self._inputs

    async def _cancel_after_match(self, key: str) -> None:
        try:
            await self._cancellations.send(key)
        except PipelineError as error:  # the completion is finished nevertheless
            log.warning("cancel_failed", request_id=self._ids[key], error=error.code.value)

    def _cancel_request(self, key: str) -> InferRequest:
        return infer_request(self._model.engine_model, engine_cancel_arrays(), self._ids.get(key, key))


def _first_string(raw: bytes) -> str:
    """The first element of a BYTES tensor: a uint32 length and the bytes. Only beam search returns more elements."""
    length = int.from_bytes(raw[:4], "little")
    return raw[4 : 4 + length].decode(errors="replace")


def _first_int32(raw: bytes | None) -> int | None:
    return None if raw is None else int.from_bytes(raw[:4], "little", signed=True)
