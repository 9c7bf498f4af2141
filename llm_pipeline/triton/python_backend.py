"""Adapts Triton's Python backend to the stages: logging, tensors, responses and errors, for the model.py files.

`triton_python_backend_utils` exists only inside Triton's stub processes, so only the model.py files may import this
package.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import orjson
import triton_python_backend_utils as pb_utils

from llm_pipeline.protocol.arrays import Array, TensorReader, TensorSpec, array
from llm_pipeline.protocol.errors import PipelineError, internal_error
from llm_pipeline.protocol.messages import TokenChunk
from llm_pipeline.protocol.tensors import CHUNK, CLIENT_ID_PARAMETER, cancel_arrays
from llm_pipeline.protocol.wire_json import token_chunk_to_arrays

_FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL

NamedArrays = list[tuple[TensorSpec, Array]]


class _TritonLogHandler(logging.Handler):
    """Forwards log records to Triton's own log."""

    def emit(self, record: logging.LogRecord) -> None:
        line = self.format(record)
        if record.levelno >= logging.ERROR:
            pb_utils.Logger.log_error(line)
        elif record.levelno >= logging.WARNING:
            pb_utils.Logger.log_warn(line)
        else:
            pb_utils.Logger.log_info(line)


def start_logging() -> None:
    """Forwards the log of this process, from INFO up, to Triton's log."""
    handler = _TritonLogHandler()
    handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.INFO)


def tensor_reader(request: Any) -> TensorReader:
    """Returns a function that reads an input of a Triton request by name: its array, or None if it was not sent."""
    # Not get_input_tensor_by_name: it searches the whole list for each of the many inputs that a request may have.
    sent = {tensor.name(): tensor for tensor in request.inputs()}

    def read(name: str) -> Array | None:
        tensor = sent.get(name)
        return None if tensor is None else tensor.as_numpy()

    return read


def client_id_of(request: Any) -> str | None:
    """Returns the client id of a Triton request's sender, or None if it gave none and so has no lease."""
    client_id = orjson.loads(request.parameters() or "{}").get(CLIENT_ID_PARAMETER)
    return client_id if isinstance(client_id, str) and client_id else None


def response(arrays: NamedArrays) -> Any:
    """Returns a Triton response with these outputs."""
    return pb_utils.InferenceResponse([pb_utils.Tensor(spec.name, values) for spec, values in arrays])


def error_response(error: PipelineError) -> Any:
    """Returns a Triton response that fails the request, with the error in the form that the front end parses."""
    # In here, because the stub adds TritonError to pb_utils only after it has imported the model.
    codes = {
        400: pb_utils.TritonError.INVALID_ARG,
        404: pb_utils.TritonError.NOT_FOUND,
        429: pb_utils.TritonError.UNAVAILABLE,
        503: pb_utils.TritonError.UNAVAILABLE,
    }
    code = codes.get(error.kind.status, pb_utils.TritonError.INTERNAL)
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(error.to_wire(), code))


def respond(handle: Callable[[], NamedArrays]) -> Any:
    """Returns the response for one request of a non-decoupled model: the outputs of `handle`, or the error it raises.

    Any exception other than PipelineError becomes an internal error.
    """
    try:
        return response(handle())
    except PipelineError as error:
        return error_response(error)
    except Exception:
        logging.getLogger(__name__).exception("a request failed")
        return error_response(internal_error())


class DecoupledReply:
    """Sends the responses of one request of a decoupled model: any number of them, ended exactly once."""

    def __init__(self, request: Any) -> None:
        self._sender = request.get_response_sender()

    def send(self, arrays: NamedArrays, *, is_final: bool) -> None:
        """Sends one response. Blocks until Triton has taken it."""
        self._sender.send(response(arrays), flags=_FINAL if is_final else 0)

    def fail(self, error: PipelineError) -> None:
        """Ends the request with an error."""
        self._sender.send(error_response(error), flags=_FINAL)

    def finish(self) -> None:
        """Ends the request without a response."""
        self._sender.send(flags=_FINAL)


def guard(reply: DecoupledReply, handle: Callable[[], None]) -> None:
    """Calls `handle` for one request of a decoupled model. An exception ends that request with an error."""
    try:
        handle()
    except PipelineError as error:
        reply.fail(error)
    except Exception:
        logging.getLogger(__name__).exception("a request failed")
        reply.fail(internal_error())


class ChunkReply:
    """Sends the chunks of one request in decode: a ChunkSender over a DecoupledReply."""

    def __init__(self, reply: DecoupledReply) -> None:
        self._reply = reply

    def send(self, chunk: TokenChunk) -> None:
        self._reply.send(token_chunk_to_arrays(chunk), is_final=chunk.is_final)


class BurstReply:
    """Sends the bursts of one channel in decode: a ChannelReply over a DecoupledReply."""

    def __init__(self, reply: DecoupledReply) -> None:
        self._reply = reply

    def send(self, burst: bytes) -> None:
        self._reply.send([(CHUNK, array(CHUNK, burst))], is_final=False)

    def finish(self) -> None:
        self._reply.finish()

    def fail(self, error: PipelineError) -> None:
        self._reply.fail(error)


def cancel_in_decode(decode: str, key: str) -> None:
    """Cancels a request in the decode model of this name, which runs in its own process.

    Takes about a millisecond. To be called from `execute` only. A failure is logged, not raised: a decode that cannot
    be reached has died, and its requests with it.
    """
    request = pb_utils.InferenceRequest(
        model_name=decode,
        requested_output_names=[],
        inputs=[pb_utils.Tensor(spec.name, values) for spec, values in cancel_arrays(key)],
    )
    try:
        errors = [result.error().message() for result in request.exec(decoupled=True) if result.has_error()]
    except pb_utils.TritonModelException as error:
        errors = [str(error)]
    if errors:
        logging.getLogger(__name__).error("a request could not be cancelled in decode: %s", errors[0])
