"""The channels of all clients: one sender, with a thread, for each client that has requests or had some just now."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable

from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.stages.decode.channel_outbox import ChannelOutbox
from llm_pipeline.stages.decode.channel_sender import (
    DEFAULT_LIMITS,
    ChannelLimits,
    ChannelReply,
    ChannelSender,
    ReadNumbers,
    TakeBurst,
)
from llm_pipeline.stages.decode.live_requests import LiveRequests
from llm_pipeline.stages.flow_control import SendWindow

_log = logging.getLogger(__name__)

MAX_CHANNELS = 1024
"""Most channels. Each has a thread and a socket, and one that is not used ends within seconds."""


class Channels:
    """Thread-safe. `create_window` makes the send window of a new channel. `read_numbers` is for the reports."""

    def __init__(
        self,
        live_requests: LiveRequests,
        take_burst: TakeBurst,
        *,
        read_numbers: ReadNumbers | None = None,
        create_window: Callable[[], SendWindow] | None = None,
        limits: ChannelLimits = DEFAULT_LIMITS,
    ) -> None:
        self._live_requests = live_requests
        self._take_burst = take_burst
        self._read_numbers = read_numbers
        self._create_window = create_window
        self._limits = limits
        self._lock = threading.Lock()  # guards the senders; taken before the lock of the live requests
        self._senders: dict[str, ChannelSender] = {}  # by client id

    def outbox_of(self, client_id: str) -> ChannelOutbox:
        """Returns where the output of a client's requests gathers. It may have been retired by the time it is used.

        Raises PipelineError (429) if there are too many channels.
        """
        return self._sender_of(client_id).outbox

    def open(self, client_id: str, reply: ChannelReply) -> None:
        """Sends a client's bursts to `reply` from now on. Raises PipelineError (429) if there are too many channels."""
        with self._lock:
            self._get_or_start(client_id).open(reply)

    def on_received(self, client_id: str, count: int) -> None:
        """A client has read its first `count` bursts."""
        with self._lock:
            sender = self._senders.get(client_id)
        if sender is not None:
            sender.on_received(count)

    def schedule(self, outboxes: Iterable[ChannelOutbox]) -> None:
        """These have new output."""
        for outbox in outboxes:
            sender = self._senders.get(outbox.client_id)
            if sender is not None:
                sender.wake()

    def close(self, timeout_s: float) -> None:
        """Ends all channels after their output, within `timeout_s` seconds.

        A client that comes later gets a new channel, with the refusals of its requests.
        """
        with self._lock:
            senders, self._senders = list(self._senders.values()), {}
        for sender in senders:
            sender.begin_close()
        limit_s = time.monotonic() + timeout_s
        for sender in senders:
            sender.join(max(limit_s - time.monotonic(), 0))

    def _sender_of(self, client_id: str) -> ChannelSender:
        with self._lock:
            return self._get_or_start(client_id)

    def _get_or_start(self, client_id: str) -> ChannelSender:
        sender = self._senders.get(client_id)
        if sender is None:
            if len(self._senders) >= MAX_CHANNELS:
                message = f"The engine serves {MAX_CHANNELS} clients with a channel, which is its limit. Retry later."
                raise PipelineError(ErrorCode.QUEUE_FULL, message)
            window = self._new_window()
            sender = ChannelSender(
                self._live_requests.add_channel(client_id),
                take_burst=self._take_burst,
                read_numbers=self._read_numbers,
                retire=self._retire,
                window=window,
                limits=self._limits,
            )
            self._senders[client_id] = sender
            sender.start()
        return sender

    def _new_window(self) -> SendWindow | None:
        try:
            return self._create_window() if self._create_window is not None else None
        except OSError:  # flow control is an optimization; the channel works without it
            _log.exception("flow control failed; a channel goes on without it")
            return None

    def _retire(self, sender: ChannelSender) -> bool:
        # Under the lock, so that no reply is given to a sender that is about to end.
        with self._lock:
            if not sender.is_idle or not self._live_requests.retire_channel(
                sender.outbox, may_discard=sender.may_discard
            ):
                return False
            if self._senders.get(sender.outbox.client_id) is sender:  # else `close` has removed it
                del self._senders[sender.outbox.client_id]
            return True
