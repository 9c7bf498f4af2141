"""decode: hands requests to the executor and sends what it generates to postprocess.

Every request ends exactly once: with a finish reason or with an error.

There are two ways out. A request of a client with a channel ends up in the bursts of that channel, each of which has
the new tokens of all requests of the client (`Channels`). Any other request has a response stream of its own, whose
chunks `SenderPool` sends. The other parts serve both: `LiveRequests` registers requests and gathers their output,
`Housekeeper` ends requests that nothing else ends, and `StopStringScanner` ends requests with a response of their own
that don't stream at their stop strings.

Locks: `LiveRequests` has one, `SenderPool` has two (the turn, then the queues), and `Channels` has one and one for each
sender. No part holds a lock while it calls the executor or sends. `Channels` is the only one that holds its lock while
it calls another part, which is `LiveRequests`. The executor calls `on_step` from its own threads, possibly holding its
own locks. `on_step` calls back into the executor only to `cancel` a request that has already ended here.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

from llm_pipeline.executors.port import Executor, ExecutorStats, OutputSink
from llm_pipeline.protocol.channel import PreparedItem
from llm_pipeline.protocol.engine_metrics import (
    CANCELLED,
    LOAD_S,
    MAX_ACTIVE,
    MAX_QUEUED,
    MAX_QUEUED_TOKENS,
    RUNNING,
    WAITING,
)
from llm_pipeline.protocol.errors import PipelineError, internal_error
from llm_pipeline.protocol.messages import (
    EngineStep,
    FinishReason,
    GenerationRequest,
    RequestEnd,
    TokenChunk,
    ends_only,
)
from llm_pipeline.runtime.subprocesses import PeriodicThread
from llm_pipeline.stages.decode.channel_sender import DEFAULT_LIMITS, WINDOW_BURSTS, ChannelLimits, ChannelReply
from llm_pipeline.stages.decode.channels import Channels
from llm_pipeline.stages.decode.guide_gate import GuideGate, Guides
from llm_pipeline.stages.decode.housekeeper import Housekeeper
from llm_pipeline.stages.decode.leases import TICK_S, Leases
from llm_pipeline.stages.decode.live_requests import CANCEL_TIMEOUT_S, ChannelRetiredError, LiveRequests
from llm_pipeline.stages.decode.outbox import ChunkSender, Outbox
from llm_pipeline.stages.decode.queue_limits import QueueLimits
from llm_pipeline.stages.decode.request_rows import LiveRequest
from llm_pipeline.stages.decode.sender_pool import SENDERS, SenderPool
from llm_pipeline.stages.decode.stop_string_scanner import StopStringScanner
from llm_pipeline.stages.flow_control import WINDOW_CHUNKS, SendWindow

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DecodeTimeouts:
    """Time limits of decode, in seconds."""

    lease_s: float = 10.0  # requests of a client that does not renew its lease for this long are cancelled
    cancel_s: float = CANCEL_TIMEOUT_S  # a cancelled request that the executor does not end is ended after this long
    tick_s: float = TICK_S  # period of the checks for the two above
    close_s: float = 5.0  # wait for unsent endings, and again for each sender thread, in `close`


@dataclass(frozen=True)
class DecodeStats:
    """Counts of requests, and the engine's own numbers, for metrics."""

    active_requests: int
    queued_requests: int
    cancelled_total: int
    gauges: Mapping[str, float] = field(default_factory=dict)  # the engine's own and the limits, by name
    stalled_s: float = 0.0  # time that an engine with work has been without a step

    @property
    def numbers(self) -> dict[str, float]:
        """The numbers for metrics, by their names in protocol/engine_metrics.py."""
        return {
            **self.gauges,
            RUNNING: self.active_requests,
            WAITING: self.queued_requests,
            CANCELLED: self.cancelled_total,
        }


class DecodeStage:
    """Runs requests on an executor. Thread-safe.

    `create_executor` receives the sink for the executor's steps. `coalesce=False` sends one token per message, for
    measurements. `create_window` makes send windows, which hold messages back while postprocess lags: one for each
    channel, one for all other requests. `stop_string_scanner` ends requests that don't stream at their stop strings;
    postprocess ends the others. With `guides`, guided requests wait until their guide is prepared. Token ids outside of
    0 to `vocab_size - 1` fail their request. With `reports_numbers`, clients with a channel get the numbers of `stats`
    while they have requests. `on_change` is called whenever `stats` may have changed.
    """

    def __init__(
        self,
        create_executor: Callable[[OutputSink], Executor],
        *,
        queue_limits: QueueLimits,
        vocab_size: int,
        coalesce: bool = True,
        create_window: Callable[[int], SendWindow] | None = None,
        senders: int = SENDERS,
        stop_string_scanner: StopStringScanner | None = None,
        guides: Guides | None = None,
        timeouts: DecodeTimeouts = DecodeTimeouts(),
        channel_limits: ChannelLimits = DEFAULT_LIMITS,
        reports_numbers: bool = False,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self._timeouts = timeouts
        self._on_change = on_change
        self._live_requests = live_requests = LiveRequests(
            vocab_size=vocab_size,
            queue_limits=queue_limits,
            leases=Leases(timeouts.lease_s, timeouts.tick_s),
            cancel_timeout_s=timeouts.cancel_s,
            tick_s=timeouts.tick_s,
        )
        self._fixed_gauges: dict[str, float] = {MAX_QUEUED: queue_limits.requests}
        if queue_limits.tokens:
            self._fixed_gauges[MAX_QUEUED_TOKENS] = queue_limits.tokens
        max_tokens = None if coalesce else 1
        window = None if create_window is None else create_window(WINDOW_CHUNKS)
        self._sender_pool = SenderPool(
            lambda outbox: live_requests.take_chunk(
                outbox, max_tokens=max_tokens, ack_address=window.address if window else None
            ),
            self._cancel_in_executor,
            senders=senders,
            window=window,
        )
        self._channels = Channels(
            live_requests,
            lambda outbox, address, numbers: live_requests.take_burst(
                outbox, max_tokens=max_tokens, ack_address=address, numbers=numbers
            ),
            read_numbers=(lambda: self.stats().numbers) if reports_numbers else None,
            create_window=None if create_window is None else partial(create_window, WINDOW_BURSTS),
            limits=channel_limits,
        )
        self._guides = guides
        self._gate = None if guides is None else GuideGate(guides, submit=self._submit_to_executor, end=self._end)
        started_s = time.monotonic()
        self._executor = create_executor(self.on_step)
        self._fixed_gauges[LOAD_S] = time.monotonic() - started_s
        self._scanner = stop_string_scanner
        if stop_string_scanner is not None:
            stop_string_scanner.start(self._end_at_stop_string)
        self._housekeeper = Housekeeper(live_requests, cancel=self._cancel_in_executor, on_step=self.on_step)
        self._housekeeping = PeriodicThread(self._tick, period_s=timeouts.tick_s, name="decode-housekeeper")
        self._sender_pool.start()
        self._housekeeping.start()

    def submit(self, request: GenerationRequest, sender: ChunkSender, client_id: str | None = None) -> None:
        """Accepts a request; its chunks and its one ending go to `sender`. Never raises: a refusal is an ending too.

        A client that gives its `client_id` has to `renew` its lease.
        """
        outbox = Outbox(request, sender)
        try:
            live = self._live_requests.register(request, outbox, client_id)
        except PipelineError as error:
            sender.send(TokenChunk(request.key, 0, (), text_options=request.text_options, error=error))
            return
        if self._scanner is not None:
            outbox.stop_string_scan = self._scanner.create_scan(live.number, request.text_options)
        self._run(live, request)
        self._on_change()

    def submit_bundle(self, client_id: str, items: Iterable[PreparedItem]) -> None:
        """Accepts the requests of a client with a channel: an error of one is the end of its own request.

        The client has to `renew` its lease. Raises PipelineError (429) if there are too many channels.
        """
        self._channels.outbox_of(client_id)  # before anything is registered
        for item in items:
            if item.request is None:
                self._refuse(client_id, item.slot, item.error or internal_error())
                continue
            try:
                live = self._register_on_channel(client_id, item.slot, item.request)
            except PipelineError as error:
                self._refuse(client_id, item.slot, error)
            else:
                self._run(live, item.request)
        self._on_change()

    def open_channel(self, client_id: str, reply: ChannelReply) -> None:
        """Sends the bursts of a client to `reply` from now on. Its former channel, if any, ends normally.

        Raises PipelineError (429) if there are too many channels.
        """
        self._channels.open(client_id, reply)

    def cancel(self, key: str) -> None:
        """Ends a request soon. May be called before the request arrives."""
        number = self._live_requests.cancel(key)
        if number is not None:
            self._cancel_in_executor(number)

    def renew(self, client_id: str, received: int | None = None) -> None:
        """Renews a client's lease. `received` is the number of bursts that it has read from its channel, if any."""
        self._live_requests.renew(client_id)
        if received is not None:
            self._channels.on_received(client_id, received)

    def on_step(self, step: EngineStep) -> None:
        """Takes the output of an engine step: the executor's sink."""
        effects = self._live_requests.on_step(step)
        if effects.outboxes:
            self._sender_pool.schedule(effects.outboxes)
        self._channels.schedule(effects.channels)
        for number in effects.unwanted:
            self._cancel_in_executor(number)
        if effects.is_changed:
            self._on_change()

    def stats(self) -> DecodeStats:
        """Returns recent counts of requests, and the engine's own gauges."""
        counts = self._executor.stats()
        cancelled_total = self._live_requests.cancelled_total
        gauges = {**self._fixed_gauges, **counts.gauges}
        return DecodeStats(
            counts.active_requests, self._queued_count(counts), cancelled_total, gauges, counts.stalled_s
        )

    def close(self) -> None:
        """Ends all requests, sends their endings, and frees the engine."""
        if self._gate is not None:
            self._gate.close()
        self._executor.close()
        if self._guides is not None:  # after the engine, whose requests would miss their masks
            self._guides.close()
        self._live_requests.close(self._timeouts.close_s)
        self._housekeeping.close()
        self._sender_pool.close(self._timeouts.close_s)
        self._channels.close(self._timeouts.close_s)
        if self._scanner is not None:
            self._scanner.close()

    def _run(self, live: LiveRequest, request: GenerationRequest) -> None:
        """Passes a live request on to the executor, by way of the gate if it has a guide, or ends it."""
        counts = self._executor.stats()
        free_slots = round(max(counts.gauges.get(MAX_ACTIVE, 0) - counts.active_requests, 0))
        try:
            self._live_requests.enter_queue(live.number, request, self._queued_count(counts), free_slots)
        except PipelineError as error:
            self._end(RequestEnd(live.number, error=error))
            return
        if request.max_tokens == 0 and not request.return_prompt_logprobs:  # nothing for the engine to do
            self._end(RequestEnd(live.number, FinishReason.LENGTH))
        elif self._gate is not None and request.guide is not None:
            self._submit(live, request, self._gate.hold)
        else:
            self._submit_to_executor(live, request)

    def _submit_to_executor(self, live: LiveRequest, request: GenerationRequest) -> None:
        self._submit(live, request, lambda live, request: self._executor.submit(live.number, request))

    def _submit(
        self, live: LiveRequest, request: GenerationRequest, submit: Callable[[LiveRequest, GenerationRequest], None]
    ) -> None:
        try:
            submit(live, request)
        except PipelineError as error:
            self._end(RequestEnd(live.number, error=error))
        except Exception:  # noqa: BLE001 - an executor's bug must not leave the client without an ending
            _log.exception("the executor failed to accept a request")
            self._end(RequestEnd(live.number, error=internal_error()))
        if live.is_cancelled:  # before the request arrived, or during the executor's `submit`
            self._cancel_in_executor(live.number)

    def _register_on_channel(self, client_id: str, slot: int, request: GenerationRequest) -> LiveRequest:
        while True:  # a channel that has just been retired is followed by a new one
            with suppress(ChannelRetiredError):
                return self._live_requests.register_on_channel(request, self._channels.outbox_of(client_id), slot)

    def _refuse(self, client_id: str, slot: int, error: PipelineError) -> None:
        while True:
            outbox = self._channels.outbox_of(client_id)
            with suppress(ChannelRetiredError):
                self._live_requests.refuse_on_channel(outbox, slot, error)
                self._channels.schedule([outbox])
                return

    def _queued_count(self, counts: ExecutorStats) -> int:
        return counts.queued_requests + (0 if self._gate is None else self._gate.held_count)

    def _tick(self) -> None:
        self._housekeeper.tick()
        if self._gate is not None:
            self._gate.release_ended()

    def _end_at_stop_string(self, number: int) -> None:
        self._cancel_in_executor(number)
        # The client gets STOP, from postprocess, which finds the same stop string.
        self._end(RequestEnd(number, FinishReason.CANCELLED))

    def _end(self, end: RequestEnd) -> None:
        self.on_step(ends_only([end]))

    def _cancel_in_executor(self, number: int) -> None:
        """Cancels without raising: an executor's bug must end neither its own thread nor a sender's."""
        try:
            if self._gate is not None and self._gate.cancel(number):
                return
            self._executor.cancel(number)
        except Exception:  # noqa: BLE001 - see above
            _log.exception("the executor failed to cancel a request")
