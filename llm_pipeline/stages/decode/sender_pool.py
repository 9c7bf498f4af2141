"""Sends chunks to postprocess from a few threads, in as few messages as the load allows.

Self-clocking coalescing: `schedule` queues an outbox with new output; a sender thread takes the next outbox from the
queue, sends everything that has accumulated in it, and goes on. When idle, that is one token per message without delay.
Under load outboxes grow while the senders are busy or the send window is full (flow_control.py), so messages carry more
tokens. No timer is involved. A request's first chunk jumps the queue.

The chunks of one request are sent in order: at most one sender thread has an outbox at a time (`is_scheduled`).
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace

from llm_pipeline.protocol.errors import internal_error
from llm_pipeline.protocol.messages import TokenChunk
from llm_pipeline.stages.decode.outbox import ChunkSender, Outbox
from llm_pipeline.stages.flow_control import SendWindow

_log = logging.getLogger(__name__)

SENDERS = 3
"""Sender threads. A send is mostly a wait for Triton to wake up, read and answer, while cores are idle. With 64 streams
three threads sent a sixth more messages per second than one, each for a tenth less CPU time (docs/decisions/0004)."""


class SenderPool:
    """Threads that take chunks from outboxes and send them.

    `take_chunk` removes and returns the next chunk of an outbox. `cancel` is called with the number of a request
    that has lost a chunk because sending it failed. `window` holds chunks back while postprocess lags.
    """

    def __init__(
        self,
        take_chunk: Callable[[Outbox], TokenChunk],
        cancel: Callable[[int], None],
        *,
        senders: int = SENDERS,
        window: SendWindow | None = None,
    ) -> None:
        self._take_chunk = take_chunk
        self._cancel = cancel
        self._window = window
        self._turn = threading.Lock()  # held by the thread that chooses the next outbox; guards the window
        self._lock = threading.Lock()  # guards the queues and every `is_scheduled`
        self._queued = threading.Condition(self._lock)
        self._first: deque[Outbox] = deque()  # outboxes that have not sent anything yet
        self._ready: deque[Outbox] = deque()
        self._is_closed = False
        self._threads = [
            threading.Thread(target=self._run, name=f"decode-sender-{number}", daemon=True) for number in range(senders)
        ]

    def start(self) -> None:
        """Starts the threads. Outboxes may be scheduled before."""
        for thread in self._threads:
            thread.start()

    def schedule(self, outboxes: Iterable[Outbox]) -> None:
        """Queues outboxes that have something to send, unless a sender thread has them or they are queued already.

        Call it after adding the output: a sender thread that finishes with an outbox checks it again for
        new output, so nothing stays behind.
        """
        with self._lock:
            for outbox in outboxes:
                if not outbox.is_scheduled and outbox.is_ready:
                    self._enqueue(outbox)
            self._queued.notify()

    def close(self, timeout_s: float) -> None:
        """Ends the threads when they have sent everything that is queued. Waits up to `timeout_s` seconds for each."""
        with self._lock:
            self._is_closed = True
            self._queued.notify_all()
        for thread in self._threads:
            thread.join(timeout_s)
        if self._window is not None:
            self._window.close()

    def _enqueue(self, outbox: Outbox) -> None:
        outbox.is_scheduled = True
        (self._first if outbox.index == 0 else self._ready).append(outbox)

    def _run(self) -> None:
        while True:
            with self._turn:
                if not self._wait_for_outbox():
                    return
                # The outbox is chosen after the wait for the window: first chunks may overtake until then.
                self._enter_window()
                outbox = self._next_outbox()
            chunk = self._take_chunk(outbox)
            self._send(outbox, chunk)
            self._release(outbox)

    def _wait_for_outbox(self) -> bool:
        """Waits until an outbox is queued. Returns False after `close` if none is left."""
        with self._lock:
            while not (self._first or self._ready):
                if self._is_closed:
                    return False
                self._queued.wait()
            return True

    def _enter_window(self) -> None:
        try:
            if self._window is not None:
                self._window.enter()
        except OSError:  # flow control is an optimization; chunks are sent even without it
            _log.exception("flow control failed; a chunk is sent without it")

    def _next_outbox(self) -> Outbox:
        with self._lock:
            return (self._first or self._ready).popleft()

    def _send(self, outbox: Outbox, chunk: TokenChunk) -> None:
        if _try_send(outbox.sender, chunk):
            return
        if chunk.is_final:  # Triton waits for an ending, and a bare error may get through where the chunk did not
            _try_send(outbox.sender, _bare_error(chunk))
        else:  # postprocess detects the gap and ends the request with an error
            self._cancel(outbox.number)

    def _release(self, outbox: Outbox) -> None:
        """Makes an outbox available again. Called after the send, so that chunks stay in order."""
        with self._lock:
            if outbox.is_ready:
                self._enqueue(outbox)
                self._queued.notify()
            else:
                outbox.is_scheduled = False


def _try_send(sender: ChunkSender, chunk: TokenChunk) -> bool:
    """Returns whether the chunk was sent. A broken sender ends its own request, not the sender thread."""
    try:
        sender.send(chunk)
    except Exception:  # noqa: BLE001 - see above
        _log.exception("a chunk could not be sent")
        return False
    return True


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
