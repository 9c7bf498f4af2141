"""Sends the bursts of one channel to postprocess, from a thread of its own.

Self-clocking, as in the sender pool: a burst carries all that the engine has made while the last one was under way. So
one message per engine step when idle, and larger ones under load.

The bursts of a channel do not arrive if Triton has cancelled its request, or refuses the step to postprocess because it
is stopping (measured: it refuses that also for requests that it has accepted). Neither is reported to decode, but both
show as bursts without an ack: the channel then fails, so that its client knows and Triton can exit.

A burst carries the engine's numbers for the client's metrics if the last report is `report_s` old, or if it ends the
client's last request. While a client has requests, a burst with nothing else is sent if they have changed.

Two limits hold bursts back: the window of bursts that postprocess has not handled yet (flow_control.py), and what the
client has not read yet, as far as it reports (`on_received`).
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol, TypeAlias

from llm_pipeline.protocol.channel import MAX_UNREAD_CHUNKS, TokenBurst
from llm_pipeline.protocol.channel_json import token_burst_to_json
from llm_pipeline.protocol.engine_metrics import EngineReport
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.stages.decode.channel_outbox import ChannelOutbox
from llm_pipeline.stages.flow_control import SendWindow

_log = logging.getLogger(__name__)

WINDOW_BURSTS = 2
"""Bursts on their way to postprocess: one that it works on, and one that waits for it."""


class ChannelReply(Protocol):
    """The response stream of a channel. `send` may block for the duration of a handshake with Triton."""

    def send(self, burst: bytes) -> None: ...

    def finish(self) -> None:
        """Ends the stream normally."""

    def fail(self, error: PipelineError) -> None:
        """Ends the stream with an error."""


@dataclass(frozen=True)
class ChannelLimits:
    """Limits of one channel."""

    linger_s: float = 1.0  # after the last request until the channel ends; Triton cannot stop before that
    open_timeout_s: float = 10.0  # until unsent output is dropped if the client opens no channel or reads nothing
    max_unread_chunks: int = MAX_UNREAD_CHUNKS  # sent, and not reported as read by the client
    max_unread_bytes: int = 32 * 2**20  # the same
    silence_s: float = 3.0  # without an ack from postprocess until the channel fails
    report_s: float = 0.05  # between two reports of the engine's numbers


TakeBurst: TypeAlias = Callable[[ChannelOutbox, "str | None", "Mapping[str, float] | None"], "TokenBurst | None"]
ReadNumbers: TypeAlias = Callable[[], Mapping[str, float]]

_CHANNEL_LOST = PipelineError(ErrorCode.ENGINE_UNAVAILABLE, "The engine's output was interrupted. Retry the request.")
DEFAULT_LIMITS = ChannelLimits()


class ChannelSender:
    """Sends what gathers in `outbox`.

    `take_burst` removes and returns the next burst, given an address for postprocess's ack, or None, and the engine's
    numbers if they are to be reported. `read_numbers` returns these; without it, there are no reports. `retire` is
    called when the channel has been idle for a while: after True the thread ends. It returns False if there is a
    request after all, or a new reply (`is_idle`).
    """

    def __init__(
        self,
        outbox: ChannelOutbox,
        *,
        take_burst: TakeBurst,
        retire: Callable[[ChannelSender], bool],
        read_numbers: ReadNumbers | None = None,
        window: SendWindow | None = None,
        limits: ChannelLimits = DEFAULT_LIMITS,
    ) -> None:
        self.outbox = outbox
        self._take_burst = take_burst
        self._retire = retire
        self._reports = None if read_numbers is None else _Reports(read_numbers, limits.report_s)
        self._pause_s = limits.linger_s if read_numbers is None else min(limits.linger_s, limits.report_s)
        self._window = window
        self._limits = limits
        self._changed = threading.Condition()  # guards everything below
        self._has_output = False
        self._new_replies: list[ChannelReply] = []
        self._is_closing = False
        self._unread: deque[tuple[int, int, int]] = deque()  # serial, chunks, bytes of each sent burst, oldest first
        self._unread_chunks = 0
        self._unread_bytes = 0
        # Of the thread alone:
        self._reply: ChannelReply | None = None
        self._last_use_s = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="decode-channel", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def wake(self) -> None:
        """There may be something to send."""
        with self._changed:
            self._has_output = True
            self._changed.notify()

    def open(self, reply: ChannelReply) -> None:
        """Sends everything from now on to `reply`, and ends the former response stream, if any, normally."""
        with self._changed:
            self._new_replies.append(reply)
            self._has_output = True
            self._changed.notify()

    def on_received(self, count: int) -> None:
        """The client has read its first `count` bursts."""
        with self._changed:
            while self._unread and self._unread[0][0] < count:
                _, chunks, size = self._unread.popleft()
                self._unread_chunks -= chunks
                self._unread_bytes -= size
            self._changed.notify()

    def begin_close(self) -> None:
        """Ends the thread and the response stream after all output, or without it if there is no response stream."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()

    def join(self, timeout_s: float) -> None:
        """Waits until the thread has ended, up to `timeout_s` seconds."""
        self._thread.join(timeout_s)

    # The thread, also where it calls `retire`

    @property
    def is_idle(self) -> bool:
        """Whether nothing has been sent for a while, and there is no new reply."""
        with self._changed:
            return not self._new_replies and time.monotonic() - self._last_use_s >= self._limits.linger_s

    @property
    def may_discard(self) -> bool:
        """Whether unsent output has no reader: the client has opened no channel in time, or stopped reading it."""
        with self._changed:
            has_reader = self._reply is not None and self._has_room()
            return not has_reader and time.monotonic() - self._last_use_s > self._limits.open_timeout_s

    def _run(self) -> None:
        while self._wait():
            try:
                self._send_next()
            except Exception:  # noqa: BLE001, PERF203 - the thread must not die: later replies are its too
                _log.exception("a burst could not be made; its channel fails")
                self._fail_reply()
        for reply in (self._reply, *self._new_replies):
            if reply is not None:
                _try(reply.finish)
        if self._window is not None:
            self._window.close()

    def _wait(self) -> bool:
        """Waits until there may be something to send, and changes the reply if there is a new one.

        Returns False when the thread is to end: the channel has been idle, or `close` was called and all is sent.
        """
        while True:
            with self._changed:
                former = self._switch_reply()
                if not former:
                    if self._reply is not None and self._has_output and self._has_room():
                        self._has_output = False
                        return True
                    if self._is_closing:
                        return False
                    self._changed.wait(self._pause_s)
            for reply in former:
                _try(reply.finish)
            if self._reports is not None and self._may_report and self._reports.have_news():
                return True
            has_unsent = self.outbox.has_output
            if not former and self.is_idle and self._has_arrived() and self._retire(self):
                if has_unsent:
                    self._fail_reply()
                return False

    def _switch_reply(self) -> list[ChannelReply]:
        """Switches to the newest reply, if there is one. Returns the former ones, which have to be finished."""
        if not self._new_replies:
            return []
        *former, self._reply = [reply for reply in (self._reply, *self._new_replies) if reply is not None]
        self._new_replies = []
        self._last_use_s = time.monotonic()
        return former

    def _has_room(self) -> bool:
        limits = self._limits
        return self._is_closing or (
            self._unread_chunks < limits.max_unread_chunks and self._unread_bytes < limits.max_unread_bytes
        )

    @property
    def _may_report(self) -> bool:
        """Whether a burst with nothing but a report may be sent. Not without requests: a Triton that is stopping would
        lose it, and wait for the client to close a channel that it has no reason to close.
        """
        with self._changed:
            has_reader = self._reply is not None and self._has_room() and not self._is_closing
        return has_reader and self.outbox.live_count > 0

    def _send_next(self) -> None:
        has_output = self.outbox.has_output
        if not (has_output or (self._reports is not None and self._may_report and self._reports.is_due)):
            return
        if self._window is not None:
            self._enter(self._window)
            if self._reply is not None and self._window.has_lost(self._limits.silence_s):
                self._fail_silent_reply()
                return
        numbers = None if self._reports is None else self._reports.take()
        burst = self._take_burst(self.outbox, self._window.address if self._window is not None else None, numbers)
        if burst is None:
            return
        if self._reports is not None and burst.ends and not self.outbox.live_count:  # nothing follows for a while
            burst = replace(burst, report=self._reports.last(burst.report))
        if has_output:
            self._last_use_s = time.monotonic()
        data = token_burst_to_json(burst)
        with self._changed:
            self._has_output = self._has_output or self.outbox.has_output  # a burst has a limit
            self._unread.append((burst.serial, len(burst.slots), len(data)))
            self._unread_chunks += len(burst.slots)
            self._unread_bytes += len(data)
        reply = self._reply
        if reply is not None and not _try(lambda: reply.send(data)):
            self._fail_reply()

    def _has_arrived(self) -> bool:
        """Whether postprocess has handled all bursts. If it does not within `silence_s`, the reply fails.

        The loss of a last burst would otherwise stay unnoticed: no burst follows that shows the gap.
        """
        if self._window is None or self._reply is None:
            return True
        unhandled_s = self._window.unhandled_s()
        if unhandled_s > self._limits.silence_s:
            self._fail_silent_reply()
        return unhandled_s == 0.0

    def _fail_silent_reply(self) -> None:
        _log.warning("postprocess does not get the bursts of a channel; the channel ends")
        self._fail_reply()

    def _enter(self, window: SendWindow) -> None:
        try:
            window.enter()
        except OSError:  # flow control is an optimization; bursts are sent even without it
            _log.exception("flow control failed; a burst is sent without it")

    def _fail_reply(self) -> None:
        """A burst is lost: its client has to know, and may not wait for what was in it."""
        reply, self._reply = self._reply, None
        if self._window is not None:
            self._window.forget_sent()
        if reply is not None:
            _try(lambda: reply.fail(_CHANNEL_LOST))


class _Reports:
    """Decides when the engine's numbers are reported. Of the sender's thread alone."""

    def __init__(self, read: ReadNumbers, period_s: float) -> None:
        self._read = read
        self._period_s = period_s
        self._sent: Mapping[str, float] = {}
        self._sent_s = -math.inf  # monotonic

    @property
    def is_due(self) -> bool:
        return time.monotonic() - self._sent_s >= self._period_s

    def have_news(self) -> bool:
        """Whether a report is due and has numbers that have not been sent."""
        return self.is_due and self._read_or_repeat() != self._sent

    def take(self) -> Mapping[str, float] | None:
        """Returns the numbers if a report is due."""
        if not self.is_due:
            return None
        self._sent, self._sent_s = self._read_or_repeat(), time.monotonic()
        return self._sent

    def last(self, report: EngineReport | None) -> EngineReport:
        """Returns the report of a burst with the present numbers."""
        self._sent, self._sent_s = self._read_or_repeat(), time.monotonic()
        return replace(report or EngineReport(), numbers=self._sent)

    def _read_or_repeat(self) -> Mapping[str, float]:
        try:
            return self._read()
        except Exception:  # noqa: BLE001 - an executor's bug must not end the sender's thread
            _log.exception("the engine's numbers can't be read")
            return self._sent


def _try(call: Callable[[], None]) -> bool:
    """Returns whether the call succeeded. A broken response stream must not end the thread."""
    try:
        call()
    except Exception:  # noqa: BLE001 - see above
        _log.exception("a response of a channel could not be sent")
        return False
    return True
