"""The requests of one client id at decode: sends their bundles, and gives each the chunks of the bursts.

A session ends with its channel: after a failure, decode may still write to a channel that is not read any more. The
next requests therefore use a session with another client id, which decode does not confuse with this one, and the lease
of this one expires.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass

import structlog

from frontend.backends.background_tasks import BackgroundTasks
from frontend.backends.channel.reader import MAX_AGE_S, ChannelReader
from frontend.backends.channel.request import ChannelRequest, unavailable
from frontend.backends.generator import OnReport, UnreachableError, ignore_report
from frontend.backends.grpc_channel import InferResponse, TritonChannel, infer_request
from frontend.backends.heartbeat import Heartbeat
from llm_pipeline.protocol.arrays import array
from llm_pipeline.protocol.channel import TextBurst
from llm_pipeline.protocol.errors import PipelineError, internal_error
from llm_pipeline.protocol.field_kinds import NamedArrays
from llm_pipeline.protocol.tensors import BUNDLE, CLIENT_ID_PARAMETER, OPEN_CHANNEL

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Endpoint:
    """One ensemble on one Triton, and the messages to its decode model, which raise PipelineError (503)."""

    connection: TritonChannel
    model: str
    cancel: Callable[[str], Awaitable[None]]  # a request key
    renew: Callable[[str, int], Awaitable[None]]  # a client id, and the number of bursts that it has read
    on_report: OnReport = ignore_report


class ChannelSession:
    """The live requests of one client id, by slot, and their channel."""

    def __init__(self, endpoint: Endpoint, background: BackgroundTasks, *, max_age_s: float = MAX_AGE_S) -> None:
        self.failure: PipelineError | None = None
        self._endpoint = endpoint
        self._background = background
        self._live: dict[int, ChannelRequest] = {}
        self._heartbeat = Heartbeat(self._beat)
        self._received_at_refusal: int | None = None  # bursts, at a heartbeat that Triton has refused
        self._is_report_due = self._is_reporting = False
        self._reader = ChannelReader(self._open_call, self, background, max_age_s=max_age_s)

    def add(self, requests: Sequence[ChannelRequest]) -> None:
        """Registers the requests of the next bundle, and opens the channel unless it is open."""
        for request in requests:
            self._live[request.slot] = request
            request.leave = self.forget
            self._heartbeat.request_begins()
        self._reader.ensure_open()

    async def send(self, requests: Sequence[ChannelRequest]) -> None:
        """Sends a bundle; returns when decode has registered its requests, or they have failed."""
        try:
            trace = requests[0].trace if all(map(requests[0].is_of_same_trace, requests)) else None
            async for _ in self._endpoint.connection.infer(self._bundle(requests), trace):
                pass
        except PipelineError as error:
            self._fail_requests(requests, error)
        except Exception:
            log.exception("bundle_failed")
            self._fail_requests(requests, internal_error())
        else:
            for request in requests:
                request.is_registered = True
            if self.failure is not None:
                self._fail_requests(requests, self.failure)
        finally:
            for request in requests:
                if not request.is_registered:  # only if this task was cancelled, or they have ended already
                    self._end(request, unavailable())

    def forget(self, request: ChannelRequest) -> None:
        """Ignores the rest of a request, if it is live."""
        if self._live.pop(request.slot, None) is not None:
            self._heartbeat.request_ends()

    def close(self) -> None:
        """Ends all requests with an error (503). This cancels an open channel."""
        for request in tuple(self._live.values()):
            self._end(request, unavailable())
        self._heartbeat.close()
        self._reader.close()

    # --- BurstConsumer ---

    def has_requests(self) -> bool:
        """Whether requests are live."""
        return bool(self._live)

    def deliver(self, burst: TextBurst) -> None:
        """Calls `on_chunk` for each chunk, and ends the requests that the burst ends."""
        if burst.report is not None:
            self._endpoint.on_report(burst.report)
        live = self._live
        for slot, chunk in burst.chunks:
            request = live.get(slot)
            if request is None or chunk.is_silent:
                continue
            request.has_begun = True
            try:
                request.on_chunk(chunk)
            except Exception:
                log.exception("chunk_not_handled", request_id=request.request_id)
                self._fail_requests([request], internal_error())
        for slot, error in burst.ends:
            if slot in live:
                self._end(live[slot], error)

    def on_much_read(self) -> None:
        """Reports the number of bursts, which the next heartbeat would do too late."""
        self._is_report_due = True
        if not self._is_reporting:
            self._is_reporting = True
            self._background.start(self._report())

    def on_channel_failure(self, error: PipelineError) -> None:
        """Fails the registered requests. The others end with the call of their bundle, which may not have started."""
        # A channel that has not started may have had registered requests before.
        self.failure = unavailable() if isinstance(error, UnreachableError) else error
        self._heartbeat.close()
        registered = [request for request in self._live.values() if request.is_registered]
        log.warning("channel_failed", error=error.code.value, requests=len(registered))
        self._fail_requests(registered, self.failure)

    # --- Parts ---

    def _open_call(self) -> AsyncIterator[InferResponse]:
        inputs: NamedArrays = [(OPEN_CHANNEL, array(OPEN_CHANNEL, True))]
        return self._endpoint.connection.infer(self._request(inputs, "channel"))

    def _bundle(self, requests: Sequence[ChannelRequest]) -> object:
        json = b"[" + b",".join(request.take_json() for request in requests) + b"]"
        others = f"+{len(requests) - 1}" if len(requests) > 1 else ""
        return self._request([(BUNDLE, array(BUNDLE, json))], requests[0].request_id + others)

    def _request(self, inputs: NamedArrays, request_id: str) -> object:
        return infer_request(
            self._endpoint.model, inputs, request_id, parameters={CLIENT_ID_PARAMETER: self._heartbeat.client_id}
        )

    def _end(self, request: ChannelRequest, error: PipelineError | None) -> None:
        self.forget(request)
        request.end(error)

    def _fail_requests(self, requests: Sequence[ChannelRequest], error: PipelineError) -> None:
        """Ends requests with an error, and cancels them in decode if they may go on there."""
        failed = [request for request in requests if request.slot in self._live]
        for request in failed:
            self._end(request, error)
        if failed and not isinstance(error, UnreachableError):
            self._background.start(self._cancel([request.key for request in failed]))

    async def _cancel(self, keys: Sequence[str]) -> None:
        results = await asyncio.gather(*(self._endpoint.cancel(key) for key in keys), return_exceptions=True)
        failures = [result for result in results if isinstance(result, BaseException)]
        if failures:  # decode cancels them when the lease of this client id expires, or has ended with its Triton
            log.warning("cancel_failed", count=len(failures), reason=type(failures[0]).__name__)

    async def _report(self) -> None:
        """Reports until nothing is due; one message at a time, so that a slow Triton gets fewer."""
        try:
            while self._is_report_due:
                self._is_report_due = False
                await self._renew_lease(self._heartbeat.client_id)
        except PipelineError as error:  # the next heartbeat repeats it
            log.warning("received_bursts_not_reported", error=error.code.value)
        finally:
            self._is_reporting = False

    async def _beat(self, client_id: str) -> None:
        """Renews the lease. Gives the channel up when Triton refuses that twice and no burst has arrived in between."""
        try:
            await self._renew_lease(client_id)
        except UnreachableError:
            if self._received_at_refusal == self._reader.received:
                self._give_up()
            self._received_at_refusal = self._reader.received
            raise
        self._received_at_refusal = None

    def _give_up(self) -> None:
        """Closes the channel of a Triton that is stopping, which delivers no burst, no end and no error any more.

        It does not exit before the call is closed (measured with Triton 2.51), so this is the one call that has to be
        cancelled (frontend/backends/grpc_channel.py).
        """
        self._reader.close()
        self.on_channel_failure(UnreachableError())

    async def _renew_lease(self, client_id: str) -> None:
        await self._endpoint.renew(client_id, self._reader.received)
