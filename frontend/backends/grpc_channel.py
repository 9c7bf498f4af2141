"""Connects to one Triton over gRPC: requests as protobuf, the responses of a call, and errors from its failures.

The only module that depends on gRPC and Triton's protocol. Its interface consists of arrays and PipelineErrors; the
callers define which tensors a model has.

A call is one HTTP/2 stream with one or more requests of the same kind. It is read to its end and never cancelled: this
Triton version does not always survive a cancellation (server PR 8078). The exception is a channel of a Triton that is
stopping (channel/session.py). Failures arrive inside the responses: the header `triton_grpc_error: true` would turn
them into gRPC status codes, but with it 1,600 failing requests, 32 at a time, crashed Triton 2.51 (SIGSEGV); without it
they did not. Response compression stays off: it reduces the throughput by 60 % (measured). Alternatives that were
tried: docs/decisions/0008.
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

from frontend.backends.background_tasks import BackgroundTasks
from frontend.backends.generator import NoRoomError, UnreachableError
from llm_pipeline.protocol.arrays import Array, TensorSpec
from llm_pipeline.protocol.errors import ErrorCode, PipelineError, internal_error
from llm_pipeline.protocol.messages import TraceContext

log = structlog.get_logger(__name__)

_SERVICE = "/inference.GRPCInferenceService/"
_SECRET_HEADER = "triton-grpc-protocol-triton-secret"  # Triton adds the prefix to the name in its arguments
_READY_TIMEOUT_S = 3.0
_FINISH_TIMEOUT_S = 30.0
_MAX_LOGGED_CHARACTERS = 300

_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # Triton restarts within seconds: reconnect more often than gRPC's default backoff of up to two minutes allows.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.enable_http_proxy", 0),
    # One connection for each TritonChannel: channels with equal options would otherwise share one.
    ("grpc.use_local_subchannel_pool", 1),
]

# Triton is down, starting or stopping: gRPC codes, and texts of Triton's errors that have no code.
_UNAVAILABLE_CODES = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.NOT_FOUND}
_NOT_READY_TEXTS = ("unknown model", "is not ready", "is not found", "Server is stopping")
_NAMED_MODEL = re.compile(r"\bmodel:? '([^']*)'")
# gRPC's errors for a call without a connection: nothing was sent. A test checks that gRPC still uses these texts.
_NO_CONNECTION_TEXTS = ("failed to connect to all addresses", "DNS resolution failed")

# Protobuf's generated classes have no types of their own.
InferRequest: TypeAlias = Any
InferResponse: TypeAlias = Any
ReadFailure: TypeAlias = Callable[[str], PipelineError | None]  # details of a failure -> error, if recognized


class TritonChannel:
    """A connection to one Triton, opened at first use. All methods belong to one event loop."""

    def __init__(
        self,
        address: str,
        *,
        secret: str | None = None,
        read_failure: ReadFailure = PipelineError.from_wire,
        logs_details: bool = True,
    ) -> None:
        """`secret` is sent with every call, for a Triton that restricts inference.

        `logs_details`: whether details of a failure may be logged. Third-party models may quote prompts in them.
        """
        self.address = address
        self._metadata = None if secret is None else ((_SECRET_HEADER, secret),)
        self._read_failure = read_failure
        self._logs_details = logs_details
        self._finishing = BackgroundTasks()

    @functools.cached_property
    def _channel(self) -> grpc.aio.Channel:
        # At first use, as a grpc.aio channel belongs to the event loop that is running when it is created.
        return grpc.aio.insecure_channel(self.address, options=_OPTIONS)

    @functools.cached_property
    def _infer_one(self) -> Any:
        # The method takes a stream of requests. A single request is the same on the wire as a stream of one, and costs
        # one operation instead of three.
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

    async def infer(self, request: InferRequest, trace: TraceContext | None = None) -> AsyncIterator[InferResponse]:
        """Yields the responses to one request, to the end of the call. Triton's spans become children of `trace`.

        Raises UnreachableError if nothing was sent, PipelineError for any other failure. After an error inside a
        response, the rest of the call is read in the background.
        """
        metadata = self._metadata if trace is None else (*(self._metadata or ()), *_trace_headers(trace))
        call, has_begun = self._infer_one(request, metadata=metadata), False
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
        """Sends requests and discards their responses. Raises the PipelineError of the first that fails."""
        try:
            messages = self._infer_many(_each(requests), metadata=self._metadata)
            failures = [message.error_message async for message in messages if message.error_message]
        except grpc.RpcError as error:
            raise self._rpc_failure(error, requests[0]) from error
        if failures:
            raise self._failure(None, failures[0], requests[0])

    async def is_model_ready(self, model: str) -> bool:
        """Whether Triton can be reached and has loaded the model. Never raises, and returns within seconds."""
        try:
            response = await self._model_ready(service_pb2.ModelReadyRequest(name=model), timeout=_READY_TIMEOUT_S)
        except grpc.RpcError:
            return False
        return bool(response.ready)

    async def model_inputs(self, model: str) -> frozenset[str]:
        """Returns the names of a model's inputs. Raises PipelineError if Triton cannot be reached."""
        try:
            response = await self._model_metadata(
                service_pb2.ModelMetadataRequest(name=model), timeout=_READY_TIMEOUT_S
            )
        except grpc.RpcError as error:
            raise self._rpc_failure(error, infer_request(model, [], "metadata")) from error
        return frozenset(tensor.name for tensor in response.inputs)

    async def close(self) -> None:
        """Closes the connection."""
        if "_channel" in self.__dict__:
            await self._channel.close()

    def _rpc_failure(self, error: grpc.RpcError, request: InferRequest, *, has_begun: bool = False) -> PipelineError:
        if isinstance(error, grpc.aio.AioRpcError):
            return self._failure(error.code(), error.details() or "", request, has_begun=has_begun)
        return self._failure(None, str(error), request, has_begun=has_begun)

    def _failure(
        self, code: grpc.StatusCode | None, details: str, request: InferRequest, *, has_begun: bool = False
    ) -> PipelineError:
        """The error of a failed call for the client. Triton's details go to the log."""
        known_error = self._read_failure(details)
        if known_error is not None:
            return known_error
        log.warning(
            "triton_call_failed",
            request_id=request.id,
            model=request.model_name,
            grpc_code=str(code),
            details=_logged(details) if self._logs_details else f"{len(details)} characters",
        )
        if not has_begun and _is_not_started(details, request.model_name):
            return UnreachableError()
        return _error_from_text(code, details)

    def _read_in_background(self, call: Any) -> None:
        """Reads a failed call to its end: dropping it would cancel it."""
        self._finishing.start(_read_to_end(call))


def infer_request(
    model: str,
    arrays: Iterable[tuple[TensorSpec, Array]],
    request_id: str,
    *,
    parameters: Mapping[str, str] | None = None,
) -> InferRequest:
    """Builds a request for one model.

    The id is part of every response and of Triton's log. Triton passes the parameters to every step of an ensemble.
    """
    request = service_pb2.ModelInferRequest(model_name=model, id=request_id)
    for name, value in (parameters or {}).items():
        request.parameters[name].string_param = value
    for spec, values in arrays:
        request.inputs.add(name=spec.name, datatype=spec.dtype, shape=values.shape)
        request.raw_input_contents.append(_raw(spec, values))
    return request


def _trace_headers(trace: TraceContext) -> list[tuple[str, str]]:
    """W3C Trace Context headers. Triton 2.51 records each request that has them, whatever their sampled flag."""
    headers = [("traceparent", trace.traceparent)]
    return [*headers, ("tracestate", trace.tracestate)] if trace.tracestate else headers


def _raw(spec: TensorSpec, values: Array) -> bytes:
    if spec.dtype == "BYTES":
        return bytes(serialize_byte_tensor(values).item())
    return np.ascontiguousarray(values).tobytes()


def output_names(response: InferResponse) -> list[str]:
    """The outputs of a response, in the order of its `raw_output_contents`; empty if it only ends a call."""
    return [output.name for output in response.outputs]


async def _each(requests: Sequence[InferRequest]) -> AsyncIterator[InferRequest]:
    for request in requests:
        yield request


async def _read_to_end(call: Any) -> None:
    try:
        await asyncio.wait_for(_exhaust(call), _FINISH_TIMEOUT_S)
    except (asyncio.TimeoutError, grpc.RpcError) as error:
        log.info("failed_call_not_read_to_its_end", reason=type(error).__name__)


async def _exhaust(call: Any) -> None:
    async for _ in call:
        pass


def _logged(details: str) -> str:
    """The first line; the others are a traceback."""
    return details.split("\n", 1)[0][:_MAX_LOGGED_CHARACTERS]


def _is_not_started(details: str, model: str) -> bool:
    """Whether the request has not started anywhere. If a later step of an ensemble is not ready, earlier ones have
    started: Triton's error then names the ensemble or the model of that step.
    """
    if "in ensemble" in details:
        return False
    if any(text in details for text in _NO_CONNECTION_TEXTS):
        return True
    named = _NAMED_MODEL.search(details)
    return any(text in details for text in _NOT_READY_TEXTS) and (named is None or named[1] == model)


def _error_from_text(code: grpc.StatusCode | None, details: str) -> PipelineError:
    if code in _UNAVAILABLE_CODES or any(text in details for text in (*_NO_CONNECTION_TEXTS, *_NOT_READY_TEXTS)):
        return PipelineError(ErrorCode.SERVICE_UNAVAILABLE, "The model server cannot be reached. Retry the request.")
    # The Python backend's error if /dev/shm is full and this request exceeds what is left of the backend's own share.
    if "shared memory pool" in details:
        return NoRoomError()
    # The Python backend's error if a model process has died: Triton restarts it.
    if "not healthy" in details:
        return PipelineError(ErrorCode.ENGINE_UNAVAILABLE, "The engine is restarting. Retry the request.")
    return internal_error()
