"""One request of a channel's client: its JSON, the callback for its text, and its end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from frontend.backends.generator import NoRoomError, OnChunk, UnreachableError
from llm_pipeline.protocol.channel import BundleItem
from llm_pipeline.protocol.channel_json import bundle_to_json
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.protocol.messages import CompletionParameters


class ChannelRequest:
    """A request from `generate` to its end. It ends once: later calls of `end` do nothing."""

    __slots__ = (
        "_json",
        "_parameters",
        "error",
        "has_begun",
        "is_registered",
        "key",
        "leave",
        "on_chunk",
        "over",
        "request_id",
        "slot",
        "trace",
    )

    def __init__(self, slot: int, parameters: CompletionParameters, on_chunk: OnChunk) -> None:
        self.slot = slot
        self.key = parameters.request_key
        self.request_id = parameters.request_id
        self.trace = parameters.trace
        self.on_chunk = on_chunk
        self._parameters = parameters
        self._json: bytes | None = None
        self.has_begun = False  # whether a chunk has arrived
        self.is_registered = False  # whether decode has confirmed its bundle
        self.leave: Callable[[ChannelRequest], None] = _do_nothing  # takes it out of its session
        self.error: PipelineError | None = None
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def is_of_same_trace(self, other: ChannelRequest) -> bool:
        """Whether both belong to the same span, or to none: Triton's spans of a bundle have one parent."""
        if self.trace is None or other.trace is None:
            return self.trace is other.trace
        return self.trace.traceparent == other.trace.traceparent

    def json(self) -> bytes:
        """The request in its bundle. Encoded when its bundle is, and kept until it is sent: megabytes, for each choice.

        Raises TypeError for a text that JSON cannot carry.
        """
        if self._json is None:
            self._json = bundle_to_json([BundleItem(self.slot, self._parameters)])[1:-1]
        return self._json

    def take_json(self) -> bytes:
        """The request in its bundle, which is not needed again."""
        json, self._json = self.json(), None
        return json

    def refuse(self, error: Exception) -> None:
        """Ends the request, which cannot be sent, with an exception of its own."""
        if not self.over.done():
            self.over.set_exception(error)

    @property
    def is_over(self) -> bool:
        """Whether it has ended, or the task that awaited its end was cancelled."""
        return self.over.done()

    def end(self, error: PipelineError | None = None) -> None:
        """Ends the request; `error` may be shared with other requests."""
        if not self.over.done():
            self.error = None if error is None else _own(error, may_be_retried=not self.has_begun)
            self.over.set_result(None)


def _do_nothing(request: ChannelRequest) -> None:
    pass


def _own(error: PipelineError, *, may_be_retried: bool) -> PipelineError:
    """A new exception for one request: an exception that several tasks raise collects the tracebacks of all."""
    if isinstance(error, UnreachableError):
        return UnreachableError() if may_be_retried else unavailable()
    return NoRoomError() if isinstance(error, NoRoomError) else error.with_param(error.param)


def unavailable() -> PipelineError:
    """The error of a request that may have started, so it must not be retried on another endpoint."""
    return PipelineError(ErrorCode.SERVICE_UNAVAILABLE, "The model server cannot be reached. Retry the request.")
