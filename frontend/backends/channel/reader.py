"""Reads the channel of one client id: a succession of calls, each read after its predecessor has ended.

decode ends a call when the client's requests have ended, so that Triton can stop, and when it has received a successor.
The successor is opened first and carries what follows, so no burst is lost, doubled or out of order at the change.
Every burst has a serial: a missing one is a failure, after which nothing more is delivered.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Protocol

import structlog

from frontend.backends.background_tasks import BackgroundTasks
from frontend.backends.grpc_channel import InferResponse, output_names
from llm_pipeline.protocol.channel import REPORT_CHUNKS, TextBurst
from llm_pipeline.protocol.channel_json import text_burst_from_json
from llm_pipeline.protocol.errors import ErrorCode, PipelineError, internal_error
from llm_pipeline.protocol.tensors import BURST

log = structlog.get_logger(__name__)

MAX_AGE_S = 20.0
"""Age at which a call gets a successor."""

REPORT_BYTES = 8 * 1024 * 1024
"""Bytes after which the consumer is to report what was read: decode holds bursts back if it hears nothing."""

_FINISH_TIMEOUT_S = 30.0
_FIRST_PAUSE_S, _MAX_PAUSE_S = 0.01, 1.0  # between calls without a burst that end at once


class BurstConsumer(Protocol):
    """The owner of a reader."""

    def has_requests(self) -> bool:
        """Whether a channel is needed."""

    def deliver(self, burst: TextBurst) -> None:
        """Receives a burst. Must not raise."""

    def on_much_read(self) -> None:
        """REPORT_CHUNKS or REPORT_BYTES have been read since the last call."""

    def on_channel_failure(self, error: PipelineError) -> None:
        """The channel has failed. No burst follows."""


class _Call:
    """One call. Its first response is requested at once, to find out early whether Triton refuses the call."""

    def __init__(self, responses: AsyncIterator[InferResponse]) -> None:
        self.opened_s = asyncio.get_running_loop().time()
        self.has_bursts = False
        self.first: asyncio.Task[InferResponse | None] = asyncio.create_task(_next(responses))
        self._responses = responses

    async def responses(self) -> AsyncIterator[InferResponse]:
        """All responses. Raises PipelineError if the call fails."""
        first = await self.first
        if first is not None:
            yield first
            async for response in self._responses:
                yield response

    async def read_to_end(self) -> None:
        """Discards what is left of a call, which must not be cancelled (frontend/backends/grpc_channel.py)."""
        try:
            await asyncio.wait_for(self._exhaust(), _FINISH_TIMEOUT_S)
        except asyncio.TimeoutError:
            log.warning("failed_channel_not_read_to_its_end")

    async def _exhaust(self) -> None:
        with suppress(PipelineError):
            async for _ in self.responses():
                pass


async def _next(responses: AsyncIterator[InferResponse]) -> InferResponse | None:
    return await anext(responses, None)


class ChannelReader:
    """Opens the channel when the consumer needs it, and reads it until the consumer has no requests or it fails.

    `open_call` sends the request for a channel and returns its responses, which raise PipelineError.
    """

    def __init__(
        self,
        open_call: Callable[[], AsyncIterator[InferResponse]],
        consumer: BurstConsumer,
        background: BackgroundTasks,
        *,
        max_age_s: float = MAX_AGE_S,
    ) -> None:
        self._open_call = open_call
        self._consumer = consumer
        self._background = background
        self._max_age_s = max_age_s
        self._replace_at_s = 0.0
        self._expected = 0  # serial of the next burst
        self._unreported_chunks = self._unreported_bytes = 0
        self._empty_calls = 0  # calls without a burst since the last burst
        self._call: _Call | None = None
        self._successor: _Call | None = None
        self._reading: asyncio.Task[None] | None = None

    @property
    def received(self) -> int:
        """The number of bursts read so far, as decode counts them."""
        return self._expected

    def ensure_open(self) -> None:
        """Opens the channel unless it is open."""
        if self._reading is None:
            self._call = self._new_call()
            self._reading = self._background.start(self._read_calls(self._call))

    def close(self) -> None:
        """Stops reading. This cancels an open call."""
        for call in (self._call, self._successor):
            if call is not None:
                call.first.cancel()
        if self._reading is not None:
            self._reading.cancel()

    def _new_call(self) -> _Call:
        call = _Call(self._open_call())
        self._replace_at_s = call.opened_s + self._max_age_s
        return call

    async def _read_calls(self, call: _Call | None) -> None:
        try:
            while call is not None:
                await self._read(call)
                await self._pause_after(call)
                call = self._call = self._following_call()
        except PipelineError as error:
            self._fail(error)
        except Exception:
            log.exception("channel_reader_failed")
            self._fail(internal_error())
        finally:
            self._reading = None

    async def _read(self, call: _Call) -> None:
        async for response in call.responses():
            if BURST.name in (names := output_names(response)):  # the last response has no outputs
                self._receive(response.raw_output_contents[names.index(BURST.name)], call)
                self._replace_old_call()

    def _count(self, chunks: int, size: int) -> None:
        self._unreported_chunks += chunks
        self._unreported_bytes += size
        if self._unreported_chunks >= REPORT_CHUNKS or self._unreported_bytes >= REPORT_BYTES:
            self._unreported_chunks = self._unreported_bytes = 0
            self._consumer.on_much_read()

    def _receive(self, element: bytes, call: _Call) -> None:
        try:
            burst = text_burst_from_json(element[4:])  # a BYTES element starts with its length
        except (ValueError, KeyError, TypeError) as error:
            log.error("burst_not_readable", reason=type(error).__name__)  # without details, which may quote text
            raise internal_error() from error
        starts_over = burst.serial == 0 and not call.has_bursts  # decode forgets a client without requests
        if burst.serial != self._expected and not starts_over:
            log.error("burst_missing", expected=self._expected, received=burst.serial)
            raise PipelineError(
                ErrorCode.SERVICE_UNAVAILABLE, "A part of the response was lost inside the server. Retry the request."
            )
        call.has_bursts = True
        self._empty_calls = 0
        self._expected = burst.serial + 1
        self._consumer.deliver(burst)
        self._count(len(burst.chunks), len(element))

    def _replace_old_call(self) -> None:
        now_s = asyncio.get_running_loop().time()
        if now_s < self._replace_at_s or self._successor is not None or not self._consumer.has_requests():
            return
        self._successor = successor = self._new_call()
        successor.first.add_done_callback(lambda first: self._on_first_response(successor, first))

    def _on_first_response(self, successor: _Call, first: asyncio.Task[InferResponse | None]) -> None:
        """Forgets a successor that was refused, as by a Triton that is stopping. The present call goes on."""
        if first.cancelled() or first.exception() is None or self._successor is not successor:
            return
        self._successor = None
        self._replace_at_s = asyncio.get_running_loop().time() + self._max_age_s / 10
        log.info("channel_not_replaced", reason=type(first.exception()).__name__)

    async def _pause_after(self, call: _Call) -> None:
        """Waits if calls end without a burst repeatedly, so that opening them does not become a busy loop."""
        if call.has_bursts or self._successor is not None or not self._consumer.has_requests():
            return
        self._empty_calls += 1
        if self._empty_calls > 1:
            await asyncio.sleep(min(_FIRST_PAUSE_S * 2 ** min(self._empty_calls, 10), _MAX_PAUSE_S))

    def _following_call(self) -> _Call | None:
        """The call to read after one that ended normally."""
        call, self._successor = self._successor, None
        if call is not None:
            self._replace_at_s = call.opened_s + self._max_age_s
            return call
        return self._new_call() if self._consumer.has_requests() else None

    def _fail(self, error: PipelineError) -> None:
        for call in (self._call, self._successor):
            if call is not None:
                self._background.start(call.read_to_end())
        self._call = self._successor = None
        self._consumer.on_channel_failure(error)
