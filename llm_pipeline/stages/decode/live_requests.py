"""The registry of live requests: which requests exist, what they have generated, and who has cancelled them.

`LiveRequests` owns one lock, which guards everything in it: the rows, the outboxes of requests and of channels, the
pending cancellations, the leases, the estimate for Retry-After and the counters. It calls neither the executor nor a
sender, so no other lock is taken while that lock is held.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from llm_pipeline.protocol.channel import StreamEnd, StreamLogprobs, StreamStart, TokenBurst
from llm_pipeline.protocol.errors import ErrorCode, PipelineError, internal_error
from llm_pipeline.protocol.messages import (
    EngineStep,
    FinishReason,
    GenerationRequest,
    RequestEnd,
    TokenChunk,
)
from llm_pipeline.runtime.retry_after import RetryAfterEstimator
from llm_pipeline.stages.decode.channel_outbox import ChannelOutbox
from llm_pipeline.stages.decode.leases import TICK_S, Leases
from llm_pipeline.stages.decode.outbox import Outbox
from llm_pipeline.stages.decode.pending_cancellations import PendingCancellations
from llm_pipeline.stages.decode.queue_limits import UNLIMITED, QueueLimits, WaitingRequests
from llm_pipeline.stages.decode.request_rows import (
    OWN_STREAM,
    Advance,
    LiveRequest,
    NoRowError,
    RequestRows,
    named_numbers,
)

_log = logging.getLogger(__name__)

CANCEL_TIMEOUT_S = 20.0
"""Requests that the executor has not ended this long after a cancellation are ended here. The front end gives up after
30 s, and the TensorRT-LLM executor ends such a request itself after 15 s by default (TRTLLM_CANCEL_TIMEOUT_S)."""


class ChannelRetiredError(Exception):
    """The channel's outbox takes no more requests: the caller gets the client's next one."""


@dataclass
class StepEffects:
    """The consequences of an engine step, for the caller of `LiveRequests.on_step` to act on without the lock."""

    outboxes: list[Outbox] = field(default_factory=list)  # have new output or have ended
    channels: list[ChannelOutbox] = field(default_factory=list)  # have new output
    unwanted: list[int] = field(default_factory=list)  # numbers of requests that have ended here, not in the executor
    is_changed: bool = False  # whether a request has become active or has ended


@dataclass(frozen=True)
class ExpiredRequests:
    """Numbers of requests that the housekeeper has to end, as found by one tick."""

    abandoned: Sequence[int]  # the requests of clients that have let their lease expire
    newly_abandoned: int  # how many of these were not cancelled before
    overdue: Sequence[int]  # cancelled requests that the executor has not ended in time


class LiveRequests:
    """Requests from registration until their end has been taken. Thread-safe.

    A token id outside 0 to `vocab_size - 1` fails its request.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        queue_limits: QueueLimits = UNLIMITED,
        leases: Leases | None = None,
        pending: PendingCancellations | None = None,
        retry_after: RetryAfterEstimator | None = None,
        rows: RequestRows | None = None,
        cancel_timeout_s: float = CANCEL_TIMEOUT_S,
        tick_s: float = TICK_S,
    ) -> None:
        self._cancel_timeout_ticks = cancel_timeout_s / tick_s
        self._lock = threading.Lock()  # guards everything below
        self._changed = threading.Condition(self._lock)
        self._rows = rows or RequestRows(vocab_size)
        self._live: dict[int, LiveRequest] = {}
        self._numbers: dict[str, int] = {}  # by key
        self._channels: dict[int, ChannelOutbox] = {}  # by outlet
        self._next_outlet = OWN_STREAM + 1
        self._own_count = 0  # live requests that have a response stream of their own
        self._untaken_ends = 0  # ends to be taken: of the live requests, and of those that just ended or were refused
        self._waiting = WaitingRequests(queue_limits)
        self._pending = pending or PendingCancellations()
        self._leases = leases or Leases(tick_s=tick_s)
        self._retry_after = retry_after or RetryAfterEstimator()
        self._cancelled_total = 0
        self._is_closed = False

    @property
    def cancelled_total(self) -> int:
        """How many requests have ended by cancellation."""
        with self._lock:
            return self._cancelled_total

    def register(self, request: GenerationRequest, outbox: Outbox, client_id: str | None = None) -> LiveRequest:
        """Makes a request with a response stream of its own live. `is_cancelled` if its cancellation arrived first.

        Raises PipelineError: 503 after `close`, 429 without a free row, 400 if another live request has the same key.
        """
        with self._lock:
            live = self._register(request, outbox, client_id)
            outbox.number = live.number
            self._own_count += 1
            return live

    def register_on_channel(self, request: GenerationRequest, channel: ChannelOutbox, slot: int) -> LiveRequest:
        """Makes a request of a channel live. Raises ChannelRetiredError, and PipelineError as `register` does."""
        with self._lock:
            if channel.is_retired:
                raise ChannelRetiredError
            live = self._register(request, channel, channel.client_id, slot)
            channel.start(StreamStart(slot, request.key, request.text_options))
            channel.live_count += 1
            return live

    def refuse_on_channel(self, channel: ChannelOutbox, slot: int, error: PipelineError) -> None:
        """Ends a request of a channel that never became live. Raises ChannelRetiredError."""
        with self._lock:
            if channel.is_retired:
                raise ChannelRetiredError
            channel.end(StreamEnd(slot, error=error))
            self._untaken_ends += 1

    def _register(
        self, request: GenerationRequest, outlet: Outbox | ChannelOutbox, client_id: str | None, slot: int = 0
    ) -> LiveRequest:
        if self._is_closed:
            raise PipelineError(ErrorCode.ENGINE_UNAVAILABLE, "The engine is shutting down. Retry shortly.")
        if request.key in self._numbers:
            raise _duplicate_request()
        index = outlet.index if isinstance(outlet, ChannelOutbox) else OWN_STREAM
        try:
            number = self._rows.add(request.max_tokens, outlet=index, slot=slot)
        except NoRowError:
            message = "The server has reached its limit of live requests. Retry later."
            raise PipelineError(ErrorCode.QUEUE_FULL, message) from None
        live = LiveRequest(number, request, client_id, outlet, slot)
        self._live[number] = live
        self._numbers[request.key] = number
        self._untaken_ends += 1
        live.is_cancelled = self._pending.on_register(request.key)
        if client_id is not None:
            self._leases.add(client_id, number)
        self._retry_after.set_busy(True)
        return live

    def enter_queue(self, number: int, request: GenerationRequest, queued: int, free_slots: int = 0) -> None:
        """Counts a live request as waiting until its first token. Raises PipelineError (429) beyond a limit.

        `queued` requests wait in the executor, which has `free_slots`.
        """
        with self._lock:
            if (refusal := self._waiting.refusal(request.tenant, queued, free_slots)) is not None:
                retry_after_s = self._retry_after.estimate_s(refusal.excess)
                raise PipelineError(ErrorCode.QUEUE_FULL, refusal.message, retry_after_s=retry_after_s)
            if number in self._live:  # its client may be gone already
                self._waiting.add(number, request)

    def add_channel(self, client_id: str) -> ChannelOutbox:
        """Returns the outbox of a new channel."""
        with self._lock:
            channel = ChannelOutbox(client_id, self._next_outlet)
            self._channels[channel.index] = channel
            self._next_outlet += 1
            return channel

    def retire_channel(self, channel: ChannelOutbox, *, may_discard: bool) -> bool:
        """Removes a channel unless it has live requests, or output that must not be discarded. Returns whether."""
        with self._lock:
            if channel.live_count or (channel.has_output and not may_discard):
                return False
            self._untaken_ends -= channel.discard()
            self._notify_if_all_taken()
            channel.is_retired = True
            del self._channels[channel.index]
            return True

    def cancel(self, key: str) -> int | None:
        """Marks a request as cancelled and returns its number; remembers the cancellation if it has not arrived."""
        with self._lock:
            number = self._numbers.get(key)
            if number is None:
                self._pending.add(key)
            else:
                self._live[number].is_cancelled = True
            return number

    def renew(self, client_id: str) -> None:
        """Restarts a client's lease."""
        with self._lock:
            self._leases.renew(client_id)

    def on_step(self, step: EngineStep) -> StepEffects:
        """Adds the output of an engine step to the outboxes. Unknown and ended requests are ignored.

        A token id outside the vocabulary fails its own request with an internal error. A step whose arrays do not fit
        together fails all requests that it names: an executor's bug must end neither its thread nor other requests.
        """
        effects = StepEffects()
        with self._lock:
            try:
                self._apply(step, effects)
            except Exception:  # noqa: BLE001 - see above
                _log.exception("the executor returned an invalid step")
                self._fail(named_numbers(step), effects)
        return effects

    def take_chunk(
        self, outbox: Outbox, *, max_tokens: int | None = None, ack_address: str | None = None
    ) -> TokenChunk:
        """Removes and returns the next chunk of an outbox; a final chunk with an error if that fails.

        Only one thread at a time may take and send the chunks of one outbox.
        """
        with self._lock:
            try:
                chunk = outbox.take_chunk(max_tokens, ack_address)
            except Exception:  # noqa: BLE001 - only this request fails; the sender goes on with the others
                _log.exception("a chunk could not be made")
                self._end(RequestEnd(outbox.number, error=internal_error()), StepEffects())
                chunk = outbox.take_error()
            if chunk.is_final:
                self._untaken_ends -= 1
                self._notify_if_all_taken()
            return chunk

    def take_burst(
        self,
        channel: ChannelOutbox,
        *,
        max_tokens: int | None = None,
        ack_address: str | None = None,
        numbers: Mapping[str, float] | None = None,
    ) -> TokenBurst | None:
        """Removes and returns the next burst of a channel, with the engine's numbers; None if there is nothing to send.

        Only one thread may take and send the bursts of one channel.
        """
        with self._lock:
            if not (channel.has_output or numbers):
                return None
            burst = channel.take_burst(max_tokens, ack_address, numbers)
            if burst.ends:
                self._untaken_ends -= len(burst.ends)
                self._notify_if_all_taken()
            return burst

    def tick(self) -> ExpiredRequests:
        """Advances leases and cancellation timeouts by one tick, and cancels the requests of clients that are gone."""
        with self._lock:
            overdue: list[int] = []
            for live in self._live.values():
                if live.is_cancelled:
                    live.cancel_ticks += 1
                    if live.cancel_ticks > self._cancel_timeout_ticks:
                        overdue.append(live.number)
            abandoned = [self._live[number] for number in self._leases.tick() if number in self._live]
            newly_abandoned = 0
            for live in abandoned:
                newly_abandoned += not live.is_cancelled
                live.is_cancelled = True
            return ExpiredRequests([live.number for live in abandoned], newly_abandoned, overdue)

    def close(self, timeout_s: float) -> None:
        """Refuses new requests, and waits up to `timeout_s` seconds until every end has been taken."""
        with self._lock:
            self._is_closed = True
            self._changed.wait_for(lambda: not self._untaken_ends, timeout_s)

    def _apply(self, step: EngineStep, effects: StepEffects) -> None:
        advance = self._rows.advance(step)
        self._add_tokens(step, advance, effects)
        for number, begun_s in step.begun.items():
            if (live := self._live.get(number)) is not None:
                live.begun_s = live.begun_s or begun_s
        if len(step.numbers) or step.begun:  # other steps are ends that decode itself has made
            self._waiting.on_step()
        for number in advance.started:
            self._waiting.remove(number)
            self._live[number].on_first_token()
            effects.is_changed = True
        if advance.invalid:
            _log.error("the executor returned token ids outside the vocabulary")
            self._fail(advance.invalid, effects)
        for end in step.ends:
            self._end(end, effects)
        for number in advance.complete:  # those that the executor goes on with
            if number in self._live:
                effects.unwanted.append(number)
                self._end(RequestEnd(number, FinishReason.LENGTH), effects)

    def _add_tokens(self, step: EngineStep, advance: Advance, effects: StepEffects) -> None:
        outlets = self._rows.outlet[advance.rows]
        if self._own_count:
            self._add_to_outboxes(step, advance, outlets == OWN_STREAM, effects)
        logprobs = self._logprobs_by_channel(step, advance) if step.logprobs else {}
        for index, channel in self._channels.items():
            is_on_channel = outlets == index
            if is_on_channel.any() or index in logprobs:
                rows, counts, token_ids = advance.select(is_on_channel)
                channel.add(self._rows.slot[rows], counts, token_ids, logprobs.get(index, ()))
                effects.channels.append(channel)

    def _add_to_outboxes(
        self, step: EngineStep, advance: Advance, is_own: npt.NDArray[np.bool_], effects: StepEffects
    ) -> None:
        start = 0
        _, own_counts, own_ids = advance.select(is_own)
        token_ids = own_ids.tolist()
        counts = dict(zip(advance.numbers[is_own].tolist(), own_counts.tolist(), strict=True))
        for number, count in counts.items():
            outbox = self._live[number].outlet
            assert isinstance(outbox, Outbox)
            outbox.add(token_ids[start : start + count])
            effects.outboxes.append(outbox)
            start += count
        for number, logprobs in step.logprobs.items():
            live = self._live.get(number)
            if live is not None and isinstance(live.outlet, Outbox):
                live.outlet.add_logprobs(logprobs, counts.get(number, 0))

    def _logprobs_by_channel(self, step: EngineStep, advance: Advance) -> dict[int, list[StreamLogprobs]]:
        counts = dict(zip(advance.numbers.tolist(), advance.counts.tolist(), strict=True))
        entries: dict[int, list[StreamLogprobs]] = {}
        for number, logprobs in step.logprobs.items():
            live = self._live.get(number)
            if live is None or not isinstance(live.outlet, ChannelOutbox):
                continue
            count = counts.get(number, 0)
            entry = StreamLogprobs(
                live.slot, logprobs.logprobs[:count], logprobs.top_logprobs[:count], logprobs.prompt_logprobs
            )
            entries.setdefault(live.outlet.index, []).append(entry)
        return entries

    def _fail(self, numbers: Sequence[int], effects: StepEffects) -> None:
        for number in numbers:
            if (live := self._live.get(number)) is not None:
                effects.unwanted.append(live.number)
                self._end(RequestEnd(live.number, error=internal_error()), effects)

    def _end(self, end: RequestEnd, effects: StepEffects) -> None:
        """Removes a live request. Its end is still to be taken."""
        live = self._live.pop(end.number, None)
        if live is None:
            return
        live.has_ended = True
        del self._numbers[live.key]
        self._rows.remove(live.number)
        self._waiting.remove(live.number)
        if isinstance(live.outlet, ChannelOutbox):
            live.outlet.live_count -= 1
            live.on_end(end)
            live.outlet.end(StreamEnd(live.slot, end.finish_reason, end.error))
            if live.outlet not in effects.channels:
                effects.channels.append(live.outlet)
        else:
            self._own_count -= 1
            live.outlet.end = end
            effects.outboxes.append(live.outlet)
        effects.is_changed = True
        self._pending.on_end(live.key)
        if live.client_id is not None:
            self._leases.remove(live.client_id, live.number)
        if end.error is None:  # a refusal must not count in the completion rate
            self._retry_after.completed()
        self._retry_after.set_busy(bool(self._live))
        self._cancelled_total += end.finish_reason is FinishReason.CANCELLED

    def _notify_if_all_taken(self) -> None:
        if not self._untaken_ends:
            self._changed.notify_all()


def _duplicate_request() -> PipelineError:
    return PipelineError(
        ErrorCode.VALUE_OUT_OF_RANGE,
        "This request_key is already in use. Send a unique key with each request.",
        param="request_key",
    )
