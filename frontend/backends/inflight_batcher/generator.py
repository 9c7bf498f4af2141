"""Completes prompts through a Triton that serves NVIDIA's own models: inflight_batcher_llm's ensemble or its BLS model.

What it has no input for is refused by name; which inputs there are is asked of Triton itself. A client's cancel reaches
a running request of an ensemble no better than it reaches ours, so a stop goes to the engine model as NVIDIA's own
message: `stop`, with the request's id. The BLS model gives its requests ids of its own, which no message can name.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

import structlog

from frontend.backends.cancel_messages import CancelSender
from frontend.backends.grpc_channel import InferRequest, TritonChannel, infer_request, output_names
from frontend.backends.inflight_batcher.tensors import (
    NEEDED_INPUTS,
    NUM_INPUT_TOKENS,
    NUM_OUTPUT_TOKENS,
    TEXT_OUTPUT,
    request_arrays,
    stop_arrays,
)
from frontend.backends.inflight_batcher.text import CompletionText
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.protocol.messages import CompletionParameters, FinishReason, TextChunk
from llm_pipeline.protocol.model_info import ModelInfo
from llm_pipeline.runtime.deployment import DeployedModel

log = structlog.get_logger(__name__)
_DEFAULT_MAX_TOKENS = 16  # the API's own; the model insists on a number

# NVIDIA's and TensorRT-LLM's words for what has a code of ours. Their text is for the log: it may hold paths.
_KNOWN_FAILURES = (
    (
        re.compile(r"(prompt|input) length.*exceed|exceeds? max(imum)?[_ ](input|seq)", re.IGNORECASE | re.DOTALL),
        ErrorCode.CONTEXT_LENGTH_EXCEEDED,
        "The prompt is longer than this model's engine takes. Shorten it.",
        "prompt",
    ),
    (
        re.compile(r"maximum queue size|queue is full", re.IGNORECASE),
        ErrorCode.QUEUE_FULL,
        "The engine's queue is full; try again as Retry-After says.",
        None,
    ),
    (
        re.compile(r"streaming is only supported in decoupled mode", re.IGNORECASE),
        ErrorCode.UNSUPPORTED_PARAMETER,
        "This model was not set up to stream (decoupled_mode is off). Leave stream out.",
        "stream",
    ),
    (
        re.compile(r"lora.*(not found|not cached)", re.IGNORECASE | re.DOTALL),
        ErrorCode.SERVICE_UNAVAILABLE,
        "The adapter behind this name is not loaded at the moment; try again shortly.",
        None,
    ),
)


def read_failure(details: str) -> PipelineError | None:
    """What a failure of NVIDIA's models means; None when their words say nothing that we know."""
    if ours := PipelineError.from_wire(details):  # our own ensemble speaks their tensor names, too
        return ours
    for words, code, message, param in _KNOWN_FAILURES:
        if words.search(details):
            return PipelineError(code, message, param=param)
    return None


class InflightBatcherGenerator:
    """A Generator over NVIDIA's ensemble at one Triton. `channel` reads failures with `read_failure`."""

    def __init__(self, channel: TritonChannel, model: DeployedModel) -> None:
        self._channel = channel
        self._model = model
        self._inputs: frozenset[str] | None = None  # None: not asked yet
        self._live: dict[str, CompletionText] = {}
        self._ids: dict[str, str] = {}  # of Triton's requests, by key
        self._stops = CancelSender(channel, self._stop_request)

    async def generate(self, parameters: CompletionParameters) -> AsyncIterator[TextChunk]:
        """See Generator."""
        max_tokens = parameters.max_tokens or self._model.default_max_tokens or _DEFAULT_MAX_TOKENS
        arrays = request_arrays(
            parameters, await self._known_inputs(), max_tokens=max_tokens, lora_task_id=self._model.lora_task_id
        )
        key = parameters.request_key
        # Two live requests with one id would overwrite each other there, so the key is part of it.
        self._ids[key] = f"{parameters.request_id}.{key}"
        text = self._live[key] = CompletionText(
            parameters,
            most_tokens=max_tokens,
            context=self._model.max_model_len,
            is_cumulative=self._model.cumulative_text,
        )
        try:
            async for chunk in self._chunks(infer_request(self._model.ensemble, arrays, self._ids[key]), text, key):
                yield chunk
        finally:
            del self._live[key], self._ids[key]

    async def _chunks(self, request: InferRequest, text: CompletionText, key: str) -> AsyncIterator[TextChunk]:
        async for response in self._channel.infer(request):
            outputs = dict(zip(output_names(response), response.raw_output_contents, strict=True))
            if TEXT_OUTPUT not in outputs:
                continue
            chunk = text.push(
                _first_string(outputs[TEXT_OUTPUT]),
                _first_int32(outputs.get(NUM_OUTPUT_TOKENS)) or 0,
                _first_int32(outputs.get(NUM_INPUT_TOKENS)),
            )
            if chunk is not None:
                yield chunk
                if chunk.finish_reason is FinishReason.STOP:  # a stop string, which the engine may not have seen
                    await self._stop_after_match(key)
        last = text.end()
        if last is not None:
            yield last

    async def cancel(self, key: str) -> None:
        """See Generator."""
        if key in self._live:  # else it is over, or has not begun: the caller repeats itself
            self._live[key].is_cancelled = True
            await self._stops.send(key)

    async def get_model_info(self) -> ModelInfo:
        """See Generator: NVIDIA's ensemble has nobody to ask."""
        raise PipelineError(ErrorCode.UNSUPPORTED_PARAMETER, "NVIDIA's ensemble does not describe itself.")

    async def is_ready(self) -> bool:
        """See Generator."""
        if not await self._channel.is_model_ready(self._model.ensemble):
            self._inputs = None  # what comes back may be another version
            return False
        try:
            await self._known_inputs()
        except PipelineError as error:
            log.warning("model_not_usable", model=self._model.name, reason=error.message)
            return False
        return True

    async def close(self) -> None:
        """See Generator."""
        await self._channel.close()

    async def _known_inputs(self) -> frozenset[str]:
        if self._inputs is None:
            inputs = await self._channel.model_inputs(self._model.ensemble)
            if missing := NEEDED_INPUTS - inputs:
                raise PipelineError(
                    ErrorCode.SERVICE_UNAVAILABLE,
                    f"The Triton model {self._model.ensemble} lacks the inputs {', '.join(sorted(missing))}: "
                    "it is not NVIDIA's inflight_batcher_llm, or an older one than that of TensorRT-LLM 1.0.",
                )
            self._inputs = inputs
        return self._inputs

    async def _stop_after_match(self, key: str) -> None:
        try:
            await self._stops.send(key)
        except PipelineError as error:  # the answer is complete all the same
            log.warning("stop_failed", request_id=self._ids[key], error=error.code.value)

    def _stop_request(self, key: str) -> InferRequest:
        return infer_request(self._model.engine_model, stop_arrays(), self._ids.get(key, key))


def _first_string(raw: bytes) -> str:
    """The first element of a BYTES tensor: a uint32 length and the bytes. There are more with beams only."""
    length = int.from_bytes(raw[:4], "little")
    return raw[4 : 4 + length].decode(errors="replace")


def _first_int32(raw: bytes | None) -> int | None:
    return None if raw is None else int.from_bytes(raw[:4], "little", signed=True)
