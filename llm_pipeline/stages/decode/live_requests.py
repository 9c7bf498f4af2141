"""The registry of live requests: which requests exist, what they have generated, and who has cancelled them.

`LiveRequests` owns one lock, which guards everything in it: the outboxes, the pending cancellations, the leases, the
estimate for Retry-After and the counters. It calls neither the executor nor a sender, so no other lock is taken while
that lock is held.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from llm_pipeline.executors.port import duplicate_request
from llm_pipeline.protocol.errors import ErrorCode, PipelineError, internal_error
from llm_pipeline.protocol.messages import FinishReason, StepOutput, TokenChunk
from llm_pipeline.runtime.retry_after import RetryAfterEstimator
from llm_pipeline.stages.decode.leases import TICK_S, Leases
from llm_pipeline.stages.decode.outbox import Outbox
from llm_pipeline.stages.decode.pending_cancellations import PendingCancellations

_log = logging.getLogger(__name__)

CANCEL_TIMEOUT_S = 20.0
"""Requests that the executor has not ended this long after a cancellation are ended here. The front end gives up after
30 s, and the TensorRT-LLM executor ends such a request itself after 15 s by default (TRTLLM_CANCEL_TIMEOUT_S)."""


@dataclass(frozen=True)
class StepEffects:
    """The consequences of engine steps, for the caller of `LiveRequests.on_steps` to act on without the lock."""

    updated: Sequence[Outbox]  # have new output or have ended
    unwanted: Sequence[str]  # keys of requests that have ended here, but not in the executor
    is_changed: bool  # whether a request has become active or has ended


@dataclass(frozen=True)
class ExpiredRequests:
    """Requests that the housekeeper has to end, as found by one tick."""

    abandoned: Sequence[str]  # keys of requests whose client has let its lease expire
    newly_abandoned: int  # number of these that were not cancelled before
    overdue: Sequence[str]  # keys of cancelled requests that the executor has not ended in time


class LiveRequests:
    """Requests from registration until their final chunk has been taken. Thread-safe.

    A token id outside 0 to `vocab_size - 1` fails its request.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        leases: Leases | None = None,
        pending: PendingCancellations | None = None,
        retry_after: RetryAfterEstimator | None = None,
        cancel_timeout_s: float = CANCEL_TIMEOUT_S,
        tick_s: float = TICK_S,
    ) -> None:
        self._vocab_size = vocab_size
        self._cancel_timeout_ticks = cancel_timeout_s / tick_s
        self._lock = threading.Lock()  # guards everything below
        self._changed = threading.Condition(self._lock)
        self._live: dict[str, Outbox] = {}
        self._unsent_count = 0  # requests whose final chunk has not been taken: the live ones and those that just ended
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

    def register(self, outbox: Outbox) -> None:
        """Makes a request live. Sets `is_cancelled` if its cancellation arrived first.

        Raises PipelineError (503) after `close`, and PipelineError (400) if another live request has the same key.
        """
        with self._lock:
            if self._is_closed:
                raise PipelineError(ErrorCode.ENGINE_UNAVAILABLE, "The engine is shutting down. Retry shortly.")
            if self._live.setdefault(outbox.key, outbox) is not outbox:
                raise duplicate_request()
            self._unsent_count += 1
            outbox.is_cancelled = self._pending.on_register(outbox.key)
            if outbox.client_id is not None:
                self._leases.add(outbox.client_id, outbox.key)
            self._retry_after.set_busy(True)

    def cancel(self, key: str) -> None:
        """Marks a request as cancelled, or remembers the cancellation until the request arrives."""
        with self._lock:
            if outbox := self._live.get(key):
                outbox.is_cancelled = True
            else:
                self._pending.add(key)

    def renew(self, client_id: str) -> None:
        """Restarts a client's lease."""
        with self._lock:
            self._leases.renew(client_id)

    def retry_after_s(self, excess: int) -> float:
        """Estimates the seconds until `excess` of the queued requests have been completed."""
        with self._lock:
            return self._retry_after.estimate_s(excess)

    def on_steps(self, steps: Sequence[StepOutput]) -> StepEffects:
        """Adds the output of engine steps to the outboxes. Steps of unknown or ended requests are ignored.

        An invalid step fails its own request with an internal error; it affects neither the others nor the caller.
        """
        updated: list[Outbox] = []
        unwanted: list[str] = []
        is_changed = False
        with self._lock:
            live, vocab_size = self._live, self._vocab_size
            for step in steps:
                try:
                    outbox = live.get(step.key)
                    if outbox is None:
                        continue
                    outbox.gather(step, vocab_size)
                except Exception:  # noqa: BLE001 - an executor's bug must end neither its thread nor other requests
                    _log.exception("the executor returned an invalid step")
                    outbox = live.get(str(getattr(step, "key", "")))
                    if outbox is None:
                        continue
                    outbox.ending = StepOutput(outbox.key, error=internal_error())
                if outbox.index == 0:  # from queued to active
                    is_changed = True
                if outbox.ending is not None:
                    is_changed = True
                    if outbox.ending is not step:
                        unwanted.append(outbox.key)
                    self._end(outbox, outbox.ending)
                elif outbox.stop_string_scan is not None:
                    outbox.stop_string_scan.scan(step.token_ids)
                updated.append(outbox)
        return StepEffects(updated, unwanted, is_changed)

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
                if self._live.get(outbox.key) is outbox:
                    self._end(outbox, StepOutput(outbox.key, error=internal_error()))
                chunk = outbox.take_error()
            if chunk.is_final:
                self._unsent_count -= 1
                if not self._unsent_count:
                    self._changed.notify_all()
            return chunk

    def tick(self) -> ExpiredRequests:
        """Advances leases and cancellation timeouts by one tick, and cancels the requests of clients that are gone."""
        with self._lock:
            overdue: list[str] = []
            for outbox in self._live.values():
                if outbox.is_cancelled:
                    outbox.cancel_ticks += 1
                    if outbox.cancel_ticks > self._cancel_timeout_ticks:
                        overdue.append(outbox.key)
            abandoned = [self._live[key] for key in self._leases.tick() if key in self._live]
            newly_abandoned = 0
            for outbox in abandoned:
                newly_abandoned += not outbox.is_cancelled
                outbox.is_cancelled = True
            return ExpiredRequests([outbox.key for outbox in abandoned], newly_abandoned, overdue)

    def close(self, timeout_s: float) -> None:
        """Refuses new requests, and waits up to `timeout_s` seconds until every final chunk has been taken."""
        with self._lock:
            self._is_closed = True
            self._changed.wait_for(lambda: not self._unsent_count, timeout_s)

    def _end(self, outbox: Outbox, ending: StepOutput) -> None:
        """Removes a request whose final chunk is still to be sent."""
        del self._live[outbox.key]
        self._pending.on_end(outbox.key)
        if outbox.client_id is not None:
            self._leases.remove(outbox.client_id, outbox.key)
        if ending.error is None:  # a refusal must not count in the completion rate
            self._retry_after.completed()
        self._retry_after.set_busy(bool(self._live))
        self._cancelled_total += ending.finish_reason is FinishReason.CANCELLED
