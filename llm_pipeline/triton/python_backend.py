"""Triton's Python backend: the only module that imports triton_python_backend_utils. The model.py files use it.

`pb_utils` exists only inside Triton's stub processes, so nothing else may import this module.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import orjson
import triton_python_backend_utils as pb_utils

from llm_pipeline.protocol.arrays import Array, TensorReader, TensorSpec
from llm_pipeline.protocol.errors import PipelineError, internal_error
from llm_pipeline.protocol.messages import TokenChunk
from llm_pipeline.protocol.tensors import OWNER_PARAMETER, cancel_arrays
from llm_pipeline.protocol.wire_json import token_chunk_to_arrays
from llm_pipeline.stages.decode.stage import DecodeStats

_FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
_METRICS_PERIOD_S = 0.25  # at the latest; a change shows within _METRICS_PAUSE_S
_METRICS_PAUSE_S = 0.02

NamedArrays = list[tuple[TensorSpec, Array]]


class _TritonLogHandler(logging.Handler):
    """Sends our log records to Triton's own log."""

    def emit(self, record: logging.LogRecord) -> None:
        line = self.format(record)
        if record.levelno >= logging.ERROR:
            pb_utils.Logger.log_error(line)
        elif record.levelno >= logging.WARNING:
            pb_utils.Logger.log_warn(line)
        else:
            pb_utils.Logger.log_info(line)


def start_logging() -> None:
    """Route the pipeline's log into Triton's."""
    handler = _TritonLogHandler()
    handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.INFO)


def tensor_reader(request: Any) -> TensorReader:
    """Reads the inputs of a Triton request by name."""
    # Not get_input_tensor_by_name: it searches the list anew for each of the many inputs that a request may have.
    sent = {tensor.name(): tensor for tensor in request.inputs()}

    def read(name: str) -> Array | None:
        tensor = sent.get(name)
        return None if tensor is None else tensor.as_numpy()

    return read


def owner_of(request: Any) -> str | None:
    """Whose request this is, when its sender has named itself."""
    owner = orjson.loads(request.parameters() or "{}").get(OWNER_PARAMETER)
    return owner if isinstance(owner, str) and owner else None


def response(arrays: NamedArrays) -> Any:
    """A Triton response with these outputs."""
    return pb_utils.InferenceResponse([pb_utils.Tensor(spec.name, values) for spec, values in arrays])


def error_response(error: PipelineError) -> Any:
    """A Triton response that fails the request, with the error in the form that the front end reads back."""
    # The stub adds TritonError to pb_utils only after it has imported the model.
    codes = {
        400: pb_utils.TritonError.INVALID_ARG,
        404: pb_utils.TritonError.NOT_FOUND,
        429: pb_utils.TritonError.UNAVAILABLE,
        503: pb_utils.TritonError.UNAVAILABLE,
    }
    code = codes.get(error.kind.status, pb_utils.TritonError.INTERNAL)
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(error.to_wire(), code))


def answer(handle: Callable[[], NamedArrays]) -> Any:
    """The response of a non-decoupled step: its outputs, or its error; a bug in it becomes an internal error."""
    try:
        return response(handle())
    except PipelineError as error:
        return error_response(error)
    except Exception:
        logging.getLogger(__name__).exception("a request failed")
        return error_response(internal_error())


class DecoupledReply:
    """The way back for one request of a decoupled model: any number of responses, ended exactly once."""

    def __init__(self, request: Any) -> None:
        self._sender = request.get_response_sender()

    def send(self, arrays: NamedArrays, *, is_final: bool) -> None:
        self._sender.send(response(arrays), flags=_FINAL if is_final else 0)

    def fail(self, error: PipelineError) -> None:
        self._sender.send(error_response(error), flags=_FINAL)

    def finish(self) -> None:
        """End without a response."""
        self._sender.send(flags=_FINAL)


def guard(reply: DecoupledReply, handle: Callable[[], None]) -> None:
    """Handle one request of a decoupled model; what it raises ends that request with an error."""
    try:
        handle()
    except PipelineError as error:
        reply.fail(error)
    except Exception:
        logging.getLogger(__name__).exception("a request failed")
        reply.fail(internal_error())


class ChunkReply:
    """A decode.ChunkSender over a DecoupledReply."""

    def __init__(self, reply: DecoupledReply) -> None:
        self._reply = reply

    def send(self, chunk: TokenChunk) -> None:
        self._reply.send(token_chunk_to_arrays(chunk), is_final=chunk.is_final)


def cancel_in_decode(decode: str, key: str) -> None:
    """Tell the decode model of this name, in its own process, to end a request.

    Takes about a millisecond; call it from `execute` only.

    A decode that can't be told has died, and the request with it, so a failure is logged and no more.
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
        logging.getLogger(__name__).error("decode could not be told to stop a request: %s", errors[0])


class DecodeMetrics:
    """decode's gauges and counter in Triton's own /metrics. Updated by a thread, since each update is a handshake.

    What the engine says about itself is one family, decode_engine{metric="..."}, whatever the engine.
    """

    def __init__(self, model: str) -> None:
        gauge, counter = pb_utils.MetricFamily.GAUGE, pb_utils.MetricFamily.COUNTER
        self._labels = {"model": model}  # one server may have several decode models
        self._active = self._metric(gauge, "decode_active_requests", "Requests being decoded")
        self._queued = self._metric(gauge, "decode_queued_requests", "Requests waiting for the engine")
        self._cancelled = self._metric(
            counter, "decode_cancelled_requests_total", "Requests that ended by being cancelled"
        )
        self._engine_family = pb_utils.MetricFamily(
            name="decode_engine", description="What the engine says about itself", kind=pb_utils.MetricFamily.GAUGE
        )
        self._engine: dict[str, Any] = {}
        self._shown = DecodeStats(0, 0, 0)
        self._changed = threading.Event()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, read_stats: Callable[[], DecodeStats]) -> None:
        """Show what `read_stats` says from now on."""
        self._thread = threading.Thread(target=self._run, args=(read_stats,), name="decode-metrics", daemon=True)
        self._thread.start()

    def changed(self) -> None:
        """Something has changed; cheap, from any thread."""
        self._changed.set()

    def close(self) -> None:
        self._closed.set()
        self._changed.set()
        if self._thread is not None:
            self._thread.join(timeout=2)

    def _run(self, read_stats: Callable[[], DecodeStats]) -> None:
        while not self._closed.is_set():
            self._changed.wait(_METRICS_PERIOD_S)
            self._changed.clear()
            try:
                self._show(read_stats())
            except Exception:
                logging.getLogger(__name__).exception("decode's metrics could not be updated")
            self._closed.wait(_METRICS_PAUSE_S)

    def _show(self, stats: DecodeStats) -> None:
        if stats.active_requests != self._shown.active_requests:
            self._active[1].set(stats.active_requests)
        if stats.queued_requests != self._shown.queued_requests:
            self._queued[1].set(stats.queued_requests)
        if stats.cancelled_total != self._shown.cancelled_total:
            self._cancelled[1].increment(stats.cancelled_total - self._shown.cancelled_total)
        for name, value in stats.gauges.items():
            if value != self._shown.gauges.get(name):
                self._engine_gauge(name).set(value)
        self._shown = stats

    def _engine_gauge(self, name: str) -> Any:
        if name not in self._engine:
            self._engine[name] = self._engine_family.Metric(labels={"metric": name, **self._labels})
        return self._engine[name]

    def _metric(self, kind: Any, name: str, description: str) -> tuple[Any, Any]:
        # The family must outlive its metric, so both are kept.
        family = pb_utils.MetricFamily(name=name, description=description, kind=kind)
        return family, family.Metric(labels=self._labels)
