"""decode: hands requests to the executor and sends what comes back, as few messages as the load asks for.

Self-clocking coalescing: the executor's thread appends new tokens to their request's outbox and marks the request as
ready; a sender thread takes the next ready request, sends all that has gathered, and goes on. Idle, that is one token
per message with no delay; busy, outboxes grow while the senders work or postprocess is behind (flow_control.py), so
messages carry more tokens. No timer takes part. A request's first tokens go ahead of the queue.

Every request ends exactly once: with a finish reason or with an error, in a message that is marked as final.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from llm_pipeline.executors.port import Executor, ExecutorStats, OutputSink, duplicate_request
from llm_pipeline.protocol.errors import ErrorCode, PipelineError, internal_error
from llm_pipeline.protocol.messages import (
    FinishReason,
    GenerationRequest,
    PromptLogprobs,
    StepOutput,
    TextOptions,
    TokenChunk,
    TopLogprobs,
)
from llm_pipeline.runtime.retry_after import RetryAfterEstimator
from llm_pipeline.stages.decode.leases import TICK_S, Leases
from llm_pipeline.stages.decode.pending_cancellations import PendingCancellations
from llm_pipeline.stages.decode.stop_string_scanner import StopStringScan, StopStringScanner
from llm_pipeline.stages.flow_control import SendWindow

_log = logging.getLogger(__name__)
# An executor that does not end a stopped request itself is not waited for longer. The front end gives up after 30 s,
# and the TensorRT-LLM executor ends such a request itself by default after 15 s (TRTLLM_CANCEL_TIMEOUT_S).
_STOP_LIMIT_S = 20.0
# Threads that send. A send mostly waits: for Triton to wake, to read and to answer, with cores idle meanwhile. At 64
# streams three made a sixth more messages a second than one, each for a tenth less CPU time (docs/decisions/0004).
SENDERS = 3


class ChunkSender(Protocol):
    """The way back for one request. `send` may block for as long as a handshake takes."""

    def send(self, chunk: TokenChunk) -> None: ...


@dataclass(frozen=True)
class DecodeStats:
    """What decode shows in Triton's metrics."""

    active_requests: int
    queued_requests: int
    cancelled_total: int
    gauges: Mapping[str, float] = field(default_factory=dict)  # the engine's own, by name


class _Outbox:
    """One live request: what has gathered for its next message."""

    __slots__ = (
        "ending",
        "index",
        "is_scheduled",
        "is_stopped",
        "key",
        "log_probs",
        "owner",
        "prompt_log_probs",
        "sender",
        "stop_ticks",
        "text",
        "token_ids",
        "tokens_left",
        "top_log_probs",
        "watch",
    )

    def __init__(self, request: GenerationRequest, sender: ChunkSender, owner: str | None) -> None:
        self.key = request.key
        self.watch: StopStringScan | None = None
        self.owner = owner
        self.sender = sender
        self.text: TextOptions | None = request.text_options
        self.tokens_left = request.max_tokens
        self.token_ids: list[int] = []
        self.log_probs: list[float | None] = []  # these three stay empty unless they were asked for
        self.top_log_probs: list[TopLogprobs] = []
        self.prompt_log_probs: PromptLogprobs | None = None
        self.ending: StepOutput | None = None
        self.index = 0
        self.is_scheduled = False  # waits for a sender, or is with one
        self.is_stopped = False
        self.stop_ticks = 0  # since then, in the housekeeper's

    @property
    def is_worth_sending(self) -> bool:
        """Whether anybody waits for what is here: without streaming, only the end matters."""
        return self.ending is not None or self.text is None or self.text.stream


class DecodeStage:
    """See the module's docstring.

    `create_executor` gets the sink that takes its steps. `coalesce` False sends one token per message, for measuring.
    `window` keeps chunks back while postprocess is behind. `watcher` ends requests that don't stream at their stop
    strings; those that do, postprocess ends. Tokens outside of `vocab_size` fail their request. An owner
    that is silent for `lease_s` loses its requests.
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
        watcher: StopStringScanner | None = None,
        lease_s: float = 10.0,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self._max_queued = max_queued_requests
        self._vocab_size = vocab_size
        self._coalesce = coalesce
        self._window = window
        self._on_change = on_change
        self._condition = threading.Condition()  # guards everything below
        self._live: dict[str, _Outbox] = {}
        self._first: deque[_Outbox] = deque()
        self._ready: deque[_Outbox] = deque()
        self._early_stops = PendingCancellations()
        self._leases = Leases(lease_s)
        self._drain_rate = RetryAfterEstimator()
        self._cancelled_total = 0
        self._closed = False
        self._has_closed = threading.Event()
        self._executor = create_executor(self._take_steps)
        self._watcher = watcher
        if watcher is not None:
            watcher.start(self._end_at_stop_string)
        self._turn = threading.Lock()  # of the sender that chooses what goes next
        self._senders = [
            threading.Thread(target=self._send_loop, name=f"decode-sender-{number}", daemon=True)
            for number in range(senders)
        ]
        for sender in self._senders:
            sender.start()
        self._housekeeper = threading.Thread(target=self._keep_house, name="decode-housekeeper", daemon=True)
        self._housekeeper.start()

    def submit(self, request: GenerationRequest, sender: ChunkSender, owner: str | None = None) -> None:
        """Take over a request. Its chunks, and its one ending, go to `sender`. An `owner` has to `renew`."""
        outbox = _Outbox(request, sender, owner)
        if self._watcher is not None:
            outbox.watch = self._watcher.watch(request.key, request.text_options)
        if refusal := self._register(outbox):
            sender.send(TokenChunk(request.key, 0, (), text_options=request.text_options, error=refusal))
            return
        try:
            self._refuse_when_full()
            if request.max_tokens == 0 and not request.return_prompt_logprobs:  # nothing for the engine to do
                self._take_steps([StepOutput(request.key, finish_reason=FinishReason.LENGTH)])
                return
            self._executor.submit(request)
        except PipelineError as error:
            self._take_steps([StepOutput(request.key, error=error)])
        except Exception:  # noqa: BLE001 - an executor's bug must not cost the client its answer
            _log.exception("the executor failed to accept a request")
            self._take_steps([StepOutput(request.key, error=internal_error())])
        if outbox.is_stopped:  # the stop came first, or while the executor took the request
            self._cancel(request.key)
        self._on_change()

    def cancel(self, key: str) -> None:
        """End a request soon; its tokens are not wanted any more. Works before the request arrives, too."""
        with self._condition:
            if outbox := self._live.get(key):
                outbox.is_stopped = True
            else:
                self._early_stops.remember(key)
        self._cancel(key)

    def _end_at_stop_string(self, key: str) -> None:
        self._cancel(key)
        self._take_steps([StepOutput(key, finish_reason=FinishReason.CANCELLED)])  # postprocess knows the true reason

    def renew(self, owner: str) -> None:
        """A sign of life from whoever sends requests under this name."""
        with self._condition:
            self._leases.renew(owner)

    def stats(self) -> DecodeStats:
        counts: ExecutorStats = self._executor.stats()
        with self._condition:
            return DecodeStats(counts.active_requests, counts.queued_requests, self._cancelled_total, counts.gauges)

    def close(self) -> None:
        """End all requests, send their endings, free the engine."""
        self._executor.close()
        self._has_closed.set()
        with self._condition:
            self._closed = True
            self._condition.notify_all()
        for sender in self._senders:
            sender.join(timeout=5)
        if self._watcher is not None:
            self._watcher.close()
        self._housekeeper.join(timeout=5)
        if self._window is not None:
            self._window.close()

    def _register(self, outbox: _Outbox) -> PipelineError | None:
        """Make the request live, or say why not. Once it is live, the sender thread stays until it has ended."""
        with self._condition:
            if self._closed:
                return _shutting_down()
            if self._live.setdefault(outbox.key, outbox) is not outbox:
                return duplicate_request()
            outbox.is_stopped = self._early_stops.began(outbox.key)
            if outbox.owner is not None:
                self._leases.add(outbox.owner, outbox.key)
            self._drain_rate.works(True)
            return None

    def _cancel(self, key: str) -> None:
        """Tell the executor. Its bugs go to the log: they must end neither its own thread nor the sender's."""
        try:
            self._executor.cancel(key)
        except Exception:  # noqa: BLE001 - see above
            _log.exception("the executor failed to cancel a request")

    def _refuse_when_full(self) -> None:
        queued = self._executor.stats().queued_requests
        if queued <= self._max_queued:
            return
        with self._condition:
            retry_after_s = self._drain_rate.wait_s(queued - self._max_queued)
        raise PipelineError(
            ErrorCode.QUEUE_FULL,
            f"{queued} requests are waiting for the engine already; the limit is {self._max_queued}. Retry later.",
            retry_after_s=retry_after_s,
        )

    def _take_steps(self, steps: Sequence[StepOutput]) -> None:
        """The sink: called from the executor's threads."""
        is_changed = False
        unwanted = []  # what the executor goes on with although it has ended here
        with self._condition:
            for step in steps:
                try:
                    outbox = self._live.get(step.key)
                    if outbox is None:
                        continue  # an executor that goes on after the end is not listened to
                    _gather(outbox, step, self._vocab_size)
                except Exception:  # noqa: BLE001 - nonsense ends one request; neither the others nor this thread
                    _log.exception("the executor made a step that makes no sense")
                    outbox = self._live.get(str(getattr(step, "key", "")))
                    if outbox is None:
                        continue
                    outbox.ending = StepOutput(outbox.key, error=internal_error())
                is_changed |= outbox.index == 0  # from queued to active
                if outbox.watch is not None and outbox.ending is None:
                    outbox.watch.look(step.token_ids)
                if outbox.ending is not None:
                    is_changed = True
                    if outbox.ending is not step:
                        unwanted.append(outbox.key)
                    self._end(outbox)
                if not outbox.is_scheduled and outbox.is_worth_sending:
                    self._mark_ready(outbox)
            self._condition.notify()
        for key in unwanted:
            self._cancel(key)
        if is_changed:
            self._on_change()

    def _end(self, outbox: _Outbox) -> None:
        """The request is not live any more; its last chunk is still to be sent. Under the lock."""
        del self._live[outbox.key]
        self._early_stops.ended(outbox.key)
        if outbox.owner is not None:
            self._leases.remove(outbox.owner, outbox.key)
        if outbox.ending is None or outbox.ending.error is None:  # a refusal says nothing about the engine's pace
            self._drain_rate.ended()
        self._drain_rate.works(bool(self._live))
        if outbox.ending is not None:
            self._cancelled_total += outbox.ending.finish_reason is FinishReason.CANCELLED

    def _keep_house(self) -> None:
        """Stop what nobody waits for any more, and end what an executor does not end."""
        while not self._has_closed.wait(TICK_S):
            try:
                self._clean_up()
            except Exception:  # noqa: BLE001, PERF203 - the next turn may go well, and nobody else cleans up
                _log.exception("a turn of the housekeeper failed")

    def _clean_up(self) -> None:
        with self._condition:
            abandoned = [self._live[key] for key in self._leases.tick() if key in self._live]
            overdue = []
            for outbox in self._live.values():
                if outbox.is_stopped:
                    outbox.stop_ticks += 1
                    if outbox.stop_ticks * TICK_S > _STOP_LIMIT_S:
                        overdue.append(outbox.key)
        for outbox in abandoned:
            if not outbox.is_stopped:
                _log.warning("the client of a request is silent; the request is stopped")
                outbox.is_stopped = True
            self._cancel(outbox.key)
        if overdue:
            _log.error("the executor has not ended %d requests that were stopped; they end here", len(overdue))
            self._take_steps([StepOutput(key, finish_reason=FinishReason.CANCELLED) for key in overdue])

    def _mark_ready(self, outbox: _Outbox) -> None:
        outbox.is_scheduled = True
        (self._first if outbox.index == 0 else self._ready).append(outbox)

    def _send_loop(self) -> None:
        while True:
            with self._turn:
                if not self._wait_for_ready():
                    return
                self._enter_window()
                outbox, chunk = self._take_ready()
            self._send(outbox, chunk)
            self._sent(outbox, chunk)

    def _enter_window(self) -> None:
        try:
            if self._window is not None:
                self._window.enter()
        except OSError:  # the window is a courtesy; tokens go out without it, too
            _log.exception("the window of chunks is out of order")

    def _send(self, outbox: _Outbox, chunk: TokenChunk) -> None:
        if _try_send(outbox.sender, chunk):
            return
        if chunk.is_final:  # Triton waits for an ending, and a bare error may pass where the chunk did not
            _try_send(outbox.sender, _bare_error(chunk))
        else:  # postprocess sees the gap, and answers with an error at the end
            self._cancel(chunk.key)

    def _sent(self, outbox: _Outbox, chunk: TokenChunk) -> None:
        """Only now may the request's next chunk be taken: chunks must arrive in order, and sending overlaps."""
        with self._condition:
            outbox.is_scheduled = False
            has_more = bool(outbox.token_ids) or outbox.ending is not None
            if has_more and not chunk.is_final and outbox.is_worth_sending:
                self._mark_ready(outbox)
                self._condition.notify()

    def _wait_for_ready(self) -> bool:
        """Whether there is something to send; false at the end."""
        with self._condition:
            while not (self._first or self._ready):
                if self._closed and not self._live:
                    return False
                self._condition.wait()
            return True

    def _take_ready(self) -> tuple[_Outbox, TokenChunk]:
        with self._condition:
            outbox = (self._first or self._ready).popleft()
            try:
                return outbox, self._take_chunk(outbox)
            except Exception:  # noqa: BLE001 - it fails this request; the sender goes on with the others
                _log.exception("a chunk could not be made")
                return outbox, self._fail(outbox)

    def _fail(self, outbox: _Outbox) -> TokenChunk:
        """The request's end. An executor that goes on with it is not listened to. Under the lock."""
        outbox.token_ids = []
        outbox.ending = StepOutput(outbox.key, error=internal_error())
        if self._live.get(outbox.key) is outbox:
            self._end(outbox)
        text = outbox.text if outbox.index == 0 else None
        return TokenChunk(outbox.key, outbox.index, (), text_options=text, error=internal_error())

    def _take_chunk(self, outbox: _Outbox) -> TokenChunk:
        count = len(outbox.token_ids) if self._coalesce else 1
        taken, outbox.token_ids = tuple(outbox.token_ids[:count]), outbox.token_ids[count:]
        ending = None if outbox.token_ids else outbox.ending
        chunk = TokenChunk(
            key=outbox.key,
            index=outbox.index,
            token_ids=taken,
            text_options=outbox.text if outbox.index == 0 else None,
            finish_reason=ending.finish_reason if ending else None,
            error=ending.error if ending else None,
            ack_address=self._window.address if self._window else None,
        )
        outbox.index += 1
        if outbox.log_probs or outbox.prompt_log_probs is not None:
            return _with_log_probs(chunk, outbox)
        return chunk


def _bare_error(chunk: TokenChunk) -> TokenChunk:
    return replace(
        chunk,
        token_ids=(),
        finish_reason=None,
        error=internal_error(),
        logprobs=(),
        top_logprobs=(),
        prompt_logprobs=None,
    )


def _try_send(sender: ChunkSender, chunk: TokenChunk) -> bool:
    """Whether it went well. One request's way back may be broken; that ends the request, not the sender thread."""
    try:
        sender.send(chunk)
    except Exception:  # noqa: BLE001 - see above
        _log.exception("a chunk could not be sent")
        return False
    return True


def _gather(outbox: _Outbox, step: StepOutput, vocab_size: int) -> None:
    """Add a step to the outbox. An executor that does not end at the request's limit is ended there.

    ValueError for tokens that are none: they would become wrong text, or none, without anybody noticing.
    """
    for token_id in step.token_ids:
        if type(token_id) is not int or not 0 <= token_id < vocab_size:
            raise ValueError(f"a token id outside of 0 to {vocab_size - 1}")
    allowed = step.token_ids[: outbox.tokens_left]
    outbox.token_ids.extend(allowed)
    outbox.tokens_left -= len(allowed)
    if step.logprobs or step.prompt_logprobs is not None:
        outbox.log_probs.extend(step.logprobs[: len(allowed)])
        outbox.top_log_probs.extend(step.top_logprobs[: len(allowed)])
        outbox.prompt_log_probs = step.prompt_logprobs or outbox.prompt_log_probs
    if step.is_final:
        outbox.ending = step
    elif outbox.tokens_left == 0:
        outbox.ending = StepOutput(step.key, finish_reason=FinishReason.LENGTH)


def _with_log_probs(chunk: TokenChunk, outbox: _Outbox) -> TokenChunk:
    """The chunk with the log probs of its tokens, which leave the outbox."""
    count = len(chunk.token_ids)
    full = replace(
        chunk,
        logprobs=tuple(outbox.log_probs[:count]),
        top_logprobs=tuple(outbox.top_log_probs[:count]),
        prompt_logprobs=outbox.prompt_log_probs,
    )
    del outbox.log_probs[:count], outbox.top_log_probs[:count]
    outbox.prompt_log_probs = None
    return full


def _shutting_down() -> PipelineError:
    return PipelineError(ErrorCode.ENGINE_UNAVAILABLE, "The engine is shutting down. Retry shortly.")
