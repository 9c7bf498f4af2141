"""Completes prompts through Triton's gRPC stream: the only module that knows tritonclient and gRPC."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
import structlog
import tritonclient.grpc.aio as triton
from tritonclient.utils import InferenceServerException

from llm_pipeline.errors import ErrorCode, PipelineError, internal_error
from llm_pipeline.messages import CompletionParameters, TextChunk
from llm_pipeline.tensors import (
    DECODE_MODEL,
    Array,
    TensorSpec,
    parameters_to_arrays,
    stop_arrays,
    text_chunk_from_raw,
)

log = structlog.get_logger(__name__)

# Failures come inside the stream's responses. The header `triton_grpc_error: true` would turn them into gRPC status
# codes, but with it 1,600 failing requests, 32 at a time, crashed Triton 2.51 (SIGSEGV); without it they did not.
_READY_TIMEOUT_S = 3.0
_STOP_TIMEOUT_S = 5.0
_FINISH_TIMEOUT_S = 30.0

_CHANNEL_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # Triton comes back within seconds: look for it more often than gRPC's own backoff of up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.enable_http_proxy", 0),
]

# What says that Triton is gone, starting or stopping: gRPC codes, and words of Triton's own where there is no code.
_UNAVAILABLE_CODES = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.NOT_FOUND}
_UNAVAILABLE_WORDS = ("unknown model", "is not ready", "is not found", "Server is stopping")
_FAILURES = (grpc.RpcError, InferenceServerException)


class TritonGenerator:
    """A Generator that sends each prompt to the ensemble. One connection carries all requests of this process."""

    def __init__(self, address: str, model: str) -> None:
        self._address = address
        self._model = model
        self._stops: list[str] = []
        self._delivery: asyncio.Task[None] | None = None
        self._finishing: set[asyncio.Task[None]] = set()

    @functools.cached_property
    def _client(self) -> Any:
        # Made at first use: a grpc.aio channel belongs to the event loop that is running when it is made.
        return triton.InferenceServerClient(self._address, channel_args=_CHANNEL_OPTIONS)

    async def generate(self, parameters: CompletionParameters) -> AsyncIterator[TextChunk]:
        """See Generator."""
        request = _request(self._model, parameters_to_arrays(parameters), parameters.request_id)
        responses = self._client.stream_infer(_each([request]))
        try:
            async for result, error in responses:
                if error is not None:
                    self._let_finish(responses)
                    raise error
                response = result.get_response()
                if response.outputs:
                    names = [output.name for output in response.outputs]
                    yield text_chunk_from_raw(names, response.raw_output_contents)
        except _FAILURES as error:
            raise _pipeline_error(error, parameters.request_id) from error

    def _let_finish(self, responses: AsyncIterator[Any]) -> None:
        """Reads a failed call to its end in the background: letting go of it would cancel it, see Generator."""
        task = asyncio.create_task(_read_to_end(responses))
        self._finishing.add(task)
        task.add_done_callback(self._finishing.discard)

    async def stop(self, key: str) -> None:
        """See Generator. Keys that are stopped in the same moment share one stream."""
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
        requests = [_request(DECODE_MODEL, stop_arrays(key), key) for key in keys]
        try:
            failures = [error async for _, error in self._client.stream_infer(_each(requests)) if error is not None]
        except _FAILURES as error:
            raise _pipeline_error(error, keys[0]) from error
        if failures:
            raise _pipeline_error(failures[0], keys[0])

    async def is_ready(self) -> bool:
        """See Generator."""
        try:
            return bool(await self._client.is_model_ready(self._model, client_timeout=_READY_TIMEOUT_S))
        except _FAILURES:
            return False

    async def close(self) -> None:
        """See Generator."""
        if "_client" in self.__dict__:
            await self._client.close()


async def _read_to_end(responses: AsyncIterator[Any]) -> None:
    try:
        await asyncio.wait_for(_exhaust(responses), _FINISH_TIMEOUT_S)
    except (asyncio.TimeoutError, *_FAILURES) as error:
        log.info("failed_call_did_not_end_well", reason=type(error).__name__)


async def _exhaust(responses: AsyncIterator[Any]) -> None:
    async for _ in responses:
        pass


async def _each(requests: Sequence[dict[str, Any]]) -> AsyncIterator[dict[str, Any]]:
    for request in requests:
        yield request


def _request(model: str, arrays: Sequence[tuple[TensorSpec, Array]], request_id: str) -> dict[str, Any]:
    inputs = []
    for spec, values in arrays:
        tensor = triton.InferInput(spec.name, list(values.shape), spec.dtype)
        tensor.set_data_from_numpy(values)
        inputs.append(tensor)
    return {"model_name": model, "inputs": inputs, "request_id": request_id}


def _pipeline_error(error: Exception, request_id: str) -> PipelineError:
    """The client's view of a failed call. What Triton said about it goes to the log."""
    code, details = _status(error)
    ours = PipelineError.from_wire(details)
    if ours is not None:
        return ours
    log.warning("triton_call_failed", request_id=request_id, grpc_code=str(code), details=details)
    if code in _UNAVAILABLE_CODES or any(words in details for words in _UNAVAILABLE_WORDS):
        return PipelineError(
            ErrorCode.SERVICE_UNAVAILABLE, "The model server cannot be reached at the moment; try again shortly."
        )
    # The Python backend's words for a model process that died: Triton restarts it.
    if "not healthy" in details:
        return PipelineError(ErrorCode.ENGINE_UNAVAILABLE, "The engine is restarting; try again shortly.")
    return internal_error()


def _status(error: Exception) -> tuple[Any, str]:
    if isinstance(error, grpc.aio.AioRpcError):
        return error.code(), error.details() or ""
    if isinstance(error, InferenceServerException):
        return error.status(), error.message() or ""
    return None, str(error)
