"""One Triton over gRPC: the connection, requests as protobuf, responses of a call, and what its failures mean.

The only module that knows gRPC and Triton's protocol. It speaks in arrays and PipelineErrors; which tensors a model
takes and gives is its users' business.

A call is one HTTP/2 stream with one request or several of the same kind. It is read to its end and never cancelled:
this Triton version does not always survive a cancellation (server PR 8078). Failures come inside the responses: the
header `triton_grpc_error: true` would turn them into gRPC status codes, but with it 1,600 failing requests, 32 at a
time, crashed Triton 2.51 (SIGSEGV); without it they did not. Response compression stays off: it cuts the throughput to
two fifths (measured). What else was tried: docs/decisions/0008.
"""

from __future__ import annotations

import asyncio
import functools
import re
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import grpc
import numpy as np
import structlog
from tritonclient.grpc import service_pb2
from tritonclient.utils import serialize_byte_tensor

from frontend.backends.generator import NoRoomError, UnreachableError
from llm_pipeline.protocol.arrays import Array, TensorSpec
from llm_pipeline.protocol.errors import ErrorCode, PipelineError, internal_error

log = structlog.get_logger(__name__)

_SERVICE = "/inference.GRPCInferenceService/"
_READY_TIMEOUT_S = 3.0
_FINISH_TIMEOUT_S = 30.0
_MAX_LOGGED_CHARACTERS = 300

_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # Triton comes back within seconds: look for it more often than gRPC's own backoff of up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.enable_http_proxy", 0),
    # A channel of its own for each TritonChannel: channels with equal options would share one connection otherwise.
    ("grpc.use_local_subchannel_pool", 1),
]

# What says that Triton is gone, starting or stopping: gRPC codes, and words of Triton's own where there is no code.
_UNAVAILABLE_CODES = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.NOT_FOUND}
_REFUSAL_WORDS = ("unknown model", "is not ready", "is not found", "Server is stopping")
_NAMED_MODEL = re.compile(r"\bmodel:? '([^']*)'")
# gRPC's words for a call that found no connection: nothing of it has left this process. A test holds gRPC to them.
_NO_CONNECTION_WORDS = ("failed to connect to all addresses", "DNS resolution failed")

# Protobuf's generated classes have no types of their own.
InferRequest: TypeAlias = Any
InferResponse: TypeAlias = Any
ReadFailure: TypeAlias = Callable[[str], PipelineError | None]  # from what a model says to our error, if it is known


class TritonChannel:
    """A connection to one Triton, made at first use. All methods belong to one event loop."""

    def __init__(
        self, address: str, *, read_failure: ReadFailure = PipelineError.from_wire, logs_details: bool = True
    ) -> None:
        """`logs_details`: whether what a failure says may be logged; models of others may quote prompts in it."""
        self.address = address
        self._read_failure = read_failure
        self._logs_details = logs_details
        self._finishing: set[asyncio.Task[None]] = set()

    @functools.cached_property
    def _channel(self) -> grpc.aio.Channel:
        # Made at first use: a grpc.aio channel belongs to the event loop that is running when it is made.
        return grpc.aio.insecure_channel(self.address, options=_OPTIONS)

    @functools.cached_property
    def _infer_one(self) -> Any:
        # The method takes a stream of requests; a stream of one is the same on the wire as a single request, and costs
        # one operation in place of three.
        return self._channel.unary_stream(
            _SERVICE + "ModelStreamInfer",
            request_serializer=service_pb2.ModelInferRequest.SerializeToString,
            response_deserializer=service_pb2.ModelStreamInferResponse.FromString,
        )

    @functools.cached_property
    def _infer_many(self) -> Any:
        return self._channel.stream_stream(
            _SERVICE + "ModelStreamInfer",
            request_serializer=service_pb2.ModelInferRequest.SerializeToString,
            response_deserializer=service_pb2.ModelStreamInferResponse.FromString,
        )

    @functools.cached_property
    def _model_ready(self) -> Any:
        return self._channel.unary_unary(
            _SERVICE + "ModelReady",
            request_serializer=service_pb2.ModelReadyRequest.SerializeToString,
            response_deserializer=service_pb2.ModelReadyResponse.FromString,
        )

    @functools.cached_property
    def _model_metadata(self) -> Any:
        return self._channel.unary_unary(
            _SERVICE + "ModelMetadata",
            request_serializer=service_pb2.ModelMetadataRequest.SerializeToString,
            response_deserializer=service_pb2.ModelMetadataResponse.FromString,
        )

    async def infer(self, request: InferRequest) -> AsyncIterator[InferResponse]:
        """The responses to one request, to their end. UnreachableError when nothing was sent, else PipelineError.

        After an error inside a response, the rest of the call is read in the background.
        """
        call, has_begun = self._infer_one(request), False
        try:
            async for message in call:
                if message.error_message:
                    self._read_in_background(call)
                    raise self._failure(None, message.error_message, request, has_begun=has_begun)
                has_begun = True
                yield message.infer_response
        except grpc.RpcError as error:
            raise self._rpc_failure(error, request, has_begun=has_begun) from error

    async def infer_all(self, requests: Sequence[InferRequest]) -> None:
        """Send requests whose responses say nothing; returns when all are answered. PipelineError as the first says."""
        try:
            messages = self._infer_many(_each(requests))
            failures = [message.error_message async for message in messages if message.error_message]
        except grpc.RpcError as error:
            raise self._rpc_failure(error, requests[0]) from error
        if failures:
            raise self._failure(None, failures[0], requests[0])

    async def is_model_ready(self, model: str) -> bool:
        """Whether Triton can be reached and has loaded the model. Never raises, answers within seconds."""
        try:
            answer = await self._model_ready(service_pb2.ModelReadyRequest(name=model), timeout=_READY_TIMEOUT_S)
        except grpc.RpcError:
            return False
        return bool(answer.ready)

    async def model_inputs(self, model: str) -> frozenset[str]:
        """The names of a model's inputs. PipelineError."""
        try:
            answer = await self._model_metadata(service_pb2.ModelMetadataRequest(name=model), timeout=_READY_TIMEOUT_S)
        except grpc.RpcError as error:
            raise self._rpc_failure(error, infer_request(model, [], "metadata")) from error
        return frozenset(tensor.name for tensor in answer.inputs)

    async def close(self) -> None:
        """Let go of the connection."""
        if "_channel" in self.__dict__:
            await self._channel.close()

    def _rpc_failure(self, error: grpc.RpcError, request: InferRequest, *, has_begun: bool = False) -> PipelineError:
        if isinstance(error, grpc.aio.AioRpcError):
            return self._failure(error.code(), error.details() or "", request, has_begun=has_begun)
        return self._failure(None, str(error), request, has_begun=has_begun)

    def _failure(
        self, code: grpc.StatusCode | None, details: str, request: InferRequest, *, has_begun: bool = False
    ) -> PipelineError:
        """The client's view of a failed call. What Triton said about it goes to the log."""
        ours = self._read_failure(details)
        if ours is not None:
            return ours
        log.warning(
            "triton_call_failed",
            request_id=request.id,
            model=request.model_name,
            grpc_code=str(code),
            details=_logged(details) if self._logs_details else f"{len(details)} characters",
        )
        if not has_begun and _is_refusal(details, request.model_name):
            return UnreachableError()
        return _failure_by_words(code, details)

    def _read_in_background(self, call: Any) -> None:
        """Reads a failed call to its end: letting go of it would cancel it, see the module."""
        task = asyncio.create_task(_read_to_end(call))
        self._finishing.add(task)
        task.add_done_callback(self._finishing.discard)


def infer_request(
    model: str,
    arrays: Iterable[tuple[TensorSpec, Array]],
    request_id: str,
    *,
    parameters: Mapping[str, str] | None = None,
) -> InferRequest:
    """A request for one model. The id comes back in every response and stands in Triton's log; Triton hands the
    parameters to every step of an ensemble.
    """
    request = service_pb2.ModelInferRequest(model_name=model, id=request_id)
    for name, value in (parameters or {}).items():
        request.parameters[name].string_param = value
    for spec, values in arrays:
        request.inputs.add(name=spec.name, datatype=spec.dtype, shape=values.shape)
        request.raw_input_contents.append(_raw(spec, values))
    return request


def _raw(spec: TensorSpec, values: Array) -> bytes:
    if spec.dtype == "BYTES":
        return bytes(serialize_byte_tensor(values).item())
    return np.ascontiguousarray(values).tobytes()


def output_names(response: InferResponse) -> list[str]:
    """The outputs of a response, in the order of its `raw_output_contents`; none when it only ends a call."""
    return [output.name for output in response.outputs]


async def _each(requests: Sequence[InferRequest]) -> AsyncIterator[InferRequest]:
    for request in requests:
        yield request


async def _read_to_end(call: Any) -> None:
    try:
        await asyncio.wait_for(_exhaust(call), _FINISH_TIMEOUT_S)
    except (asyncio.TimeoutError, grpc.RpcError) as error:
        log.info("failed_call_did_not_end_well", reason=type(error).__name__)


async def _exhaust(call: Any) -> None:
    async for _ in call:
        pass


def _logged(details: str) -> str:
    """The first line: what follows is a traceback."""
    return details.split("\n", 1)[0][:_MAX_LOGGED_CHARACTERS]


def _is_refusal(details: str, model: str) -> bool:
    """Whether nothing of the request runs anywhere. A step of an ensemble that refuses follows others that have begun:
    Triton names the ensemble then, or the step's model.
    """
    if "in ensemble" in details:
        return False
    if any(words in details for words in _NO_CONNECTION_WORDS):
        return True
    named = _NAMED_MODEL.search(details)
    return any(words in details for words in _REFUSAL_WORDS) and (named is None or named[1] == model)


def _failure_by_words(code: grpc.StatusCode | None, details: str) -> PipelineError:
    if code in _UNAVAILABLE_CODES or any(words in details for words in (*_NO_CONNECTION_WORDS, *_REFUSAL_WORDS)):
        return PipelineError(
            ErrorCode.SERVICE_UNAVAILABLE, "The model server cannot be reached at the moment; try again shortly."
        )
    # Of the Python backend: /dev/shm is full, and this request is larger than what is left of its own share.
    if "shared memory pool" in details:
        return NoRoomError()
    # The Python backend's words for a model process that died: Triton restarts it.
    if "not healthy" in details:
        return PipelineError(ErrorCode.ENGINE_UNAVAILABLE, "The engine is restarting; try again shortly.")
    return internal_error()
