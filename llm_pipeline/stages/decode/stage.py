"""decode: hands requests to the executor and sends what it generates to postprocess.

Every request ends exactly once: with a finish reason or with an error, in a chunk that is marked as final.

The parts: `LiveRequests` registers requests and gathers their output, one `Outbox` each; `SenderPool` sends it;
`Housekeeper` ends requests that nothing else ends; `StopStringScanner` ends requests that don't stream at their stop
strings. A replacement for `SenderPool` needs a method `schedule(outboxes)` and calls `LiveRequests.take_chunk`; the
registry and the executors stay as they are.

Locks: `LiveRequests` has one, and `SenderPool` has two (the turn, then the queues). No part holds a lock while it calls
another part, the executor or a sender, so there is no lock order between parts. The executor calls `on_steps` from its
own threads, possibly holding its own locks. `on_steps` calls back into the executor only to `cancel` a request that has
already ended here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from llm_pipeline.executors.port import Executor, OutputSink
from llm_pipeline.protocol.errors import ErrorCode, PipelineError, internal_error
from llm_pipeline.protocol.messages import FinishReason, GenerationRequest, StepOutput, TokenChunk
from llm_pipeline.runtime.subprocesses import PeriodicThread
from llm_pipeline.stages.decode.housekeeper import Housekeeper
from llm_pipeline.stages.decode.leases import TICK_S, Leases
from llm_pipeline.stages.decode.live_requests import CANCEL_TIMEOUT_S, LiveRequests
from llm_pipeline.stages.decode.outbox import ChunkSender, Outbox
from llm_pipeline.stages.decode.sender_pool import SENDERS, SenderPool
from llm_pipeline.stages.decode.stop_string_scanner import StopStringScanner
from llm_pipeline.stages.flow_control import SendWindow

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
    """Counts of requests for Triton's metrics."""

    active_requests: int
    queued_requests: int
    cancelled_total: int
    gauges: Mapping[str, float] = field(default_factory=dict)  # the engine's own, by name


class DecodeStage:
    """Runs requests on an executor. Thread-safe.

    `create_executor` receives the sink for the executor's steps. `coalesce=False` sends one token per message, for
    measurements. `window` holds chunks back while postprocess lags. `stop_string_scanner` ends requests that don't
    stream at their stop strings; postprocess ends those that do. Token ids outside of 0 to `vocab_size - 1` fail their
    request. `on_change` is called whenever `stats` may have changed.
    """

    def __init__(
        self,
        create_executor: Callable[[OutputSink], Executor],
        *,
        max_queued_requests: int,
        vocab_size: int,
        coalesce: bool = True,
        window: SendWindow | None = None,
        senders: int = SENDERS,
        stop_string_scanner: StopStringScanner | None = None,
        timeouts: DecodeTimeouts = DecodeTimeouts(),
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self._max_queued_requests = max_queued_requests
        self._timeouts = timeouts
        self._on_change = on_change
        self._live_requests = LiveRequests(
            vocab_size=vocab_size,
            leases=Leases(timeouts.lease_s, timeouts.tick_s),
            cancel_timeout_s=timeouts.cancel_s,
            tick_s=timeouts.tick_s,
        )
        take_chunk = partial(
            self._live_requests.take_chunk,
            max_tokens=None if coalesce else 1,
            ack_address=window.address if window else None,
        )
        self._sender_pool = SenderPool(take_chunk, self._cancel_in_executor, senders=senders, window=window)
        self._executor = create_executor(self.on_steps)
        self._scanner = stop_string_scanner
        if stop_string_scanner is not None:
            stop_string_scanner.start(self._end_at_stop_string)
        housekeeper = Housekeeper(self._live_requests, cancel=self._cancel_in_executor, on_steps=self.on_steps)
        self._housekeeping = PeriodicThread(housekeeper.tick, period_s=timeouts.tick_s, name="decode-housekeeper")
        self._sender_pool.start()
        self._housekeeping.start()

    def submit(self, request: GenerationRequest, sender: ChunkSender, client_id: str | None = None) -> None:
        """Accepts a request; its chunks and its one ending go to `sender`. Never raises: a refusal is an ending too.

        A client that gives its `client_id` has to `renew` its lease.
        """
        scan = None if self._scanner is None else self._scanner.create_scan(request.key, request.text_options)
        outbox = Outbox(request, sender, client_id, scan)
        try:
            self._live_requests.register(outbox)
        except PipelineError as error:
            sender.send(TokenChunk(request.key, 0, (), text_options=request.text_options, error=error))
            return
        try:
            self._check_queue()
            if request.max_tokens == 0 and not request.return_prompt_logprobs:  # nothing for the engine to do
                self.on_steps([StepOutput(request.key, finish_reason=FinishReason.LENGTH)])
                return
            self._executor.submit(request)
        except PipelineError as error:
            self.on_steps([StepOutput(request.key, error=error)])
        except Exception:  # noqa: BLE001 - an executor's bug must not leave the client without an ending
            _log.exception("the executor failed to accept a request")
            self.on_steps([StepOutput(request.key, error=internal_error())])
        if outbox.is_cancelled:  # before the request arrived, or during the executor's `submit`
            self._cancel_in_executor(request.key)
        self._on_change()

    def cancel(self, key: str) -> None:
        """Ends a request soon. May be called before the request arrives."""
        self._live_requests.cancel(key)
        self._cancel_in_executor(key)

    def renew(self, client_id: str) -> None:
        """Renews a client's lease: the client still wants its requests."""
        self._live_requests.renew(client_id)

    def on_steps(self, steps: Sequence[StepOutput]) -> None:
        """Takes the output of engine steps: the executor's sink."""
        effects = self._live_requests.on_steps(steps)
        self._sender_pool.schedule(effects.updated)
        for key in effects.unwanted:
            self._cancel_in_executor(key)
        if effects.is_changed:
            self._on_change()

    def stats(self) -> DecodeStats:
        """Returns recent counts of requests, and the engine's own gauges."""
        counts = self._executor.stats()
        cancelled_total = self._live_requests.cancelled_total
        return DecodeStats(counts.active_requests, counts.queued_requests, cancelled_total, counts.gauges)

    def close(self) -> None:
        """Ends all requests, sends their endings, and frees the engine."""
        self._executor.close()
        self._live_requests.close(self._timeouts.close_s)
        self._housekeeping.close()
        self._sender_pool.close(self._timeouts.close_s)
        if self._scanner is not None:
            self._scanner.close()

    def _check_queue(self) -> None:
        """Raises PipelineError (429) if too many requests are waiting for the engine."""
        queued = self._executor.stats().queued_requests
        if queued > self._max_queued_requests:
            raise PipelineError(
                ErrorCode.QUEUE_FULL,
                f"The engine's queue is full: {queued} requests are waiting, and the limit is "
                f"{self._max_queued_requests}. Retry after the delay in the Retry-After header.",
                retry_after_s=self._live_requests.retry_after_s(queued - self._max_queued_requests),
            )

    def _end_at_stop_string(self, key: str) -> None:
        self._cancel_in_executor(key)
        # The client gets STOP, from postprocess, which finds the same stop string.
        self.on_steps([StepOutput(key, finish_reason=FinishReason.CANCELLED)])

    def _cancel_in_executor(self, key: str) -> None:
        """Cancels without raising: an executor's bug must end neither its own thread nor a sender's."""
        try:
            self._executor.cancel(key)
        except Exception:  # noqa: BLE001 - see above
            _log.exception("the executor failed to cancel a request")
