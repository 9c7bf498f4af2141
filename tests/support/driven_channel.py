"""A ChannelSender that the test drives, with a reply that records bursts."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

import numpy as np

from llm_pipeline.protocol.channel import StreamEnd, StreamStart, TokenBurst
from llm_pipeline.protocol.messages import FinishReason, TextOptions
from llm_pipeline.stages.decode.channel_outbox import ChannelOutbox
from llm_pipeline.stages.decode.channel_sender import ChannelLimits, ChannelSender, ReadNumbers
from llm_pipeline.stages.flow_control import SendWindow
from tests.support.driven_stage import DEADLINE_S
from tests.support.recorded_bursts import RecordingReply

SLOT = 7
SHORT_S = 0.02
LIMITS = ChannelLimits(linger_s=DEADLINE_S, open_timeout_s=DEADLINE_S)
BRIEF = ChannelLimits(linger_s=SHORT_S, open_timeout_s=5 * SHORT_S)


class DrivenChannel:
    """A ChannelSender whose outbox the test fills. It has one request, which is live until `end`."""

    def __init__(
        self,
        *,
        limits: ChannelLimits = LIMITS,
        window: SendWindow | None = None,
        read_numbers: ReadNumbers | None = None,
    ) -> None:
        self.outbox = ChannelOutbox("front end", 1)
        self.outbox.start(StreamStart(SLOT, "a", TextOptions()))
        self.is_live = True
        self.is_retired = threading.Event()
        self.before_retire: Callable[[], None] = lambda: None
        self.before_take: Callable[[], None] = lambda: None
        self._lock = threading.Lock()
        self._replies: list[RecordingReply] = []
        self.sender = ChannelSender(
            self.outbox,
            take_burst=self._take_burst,
            retire=self._retire,
            read_numbers=read_numbers,
            window=window,
            limits=limits,
        )
        self.sender.start()

    def open(self, reply: RecordingReply | None = None) -> RecordingReply:
        reply = reply or RecordingReply()
        self._replies.append(reply)
        self.sender.open(reply)
        return reply

    def generate(self, *token_ids: int) -> None:
        with self._lock:
            self.outbox.add(np.array([SLOT]), np.array([len(token_ids)]), np.array(token_ids))
        self.sender.wake()

    def end(self) -> None:
        with self._lock:
            self.outbox.end(StreamEnd(SLOT, FinishReason.STOP))
            self.is_live = False
        self.sender.wake()

    def close(self) -> None:
        for reply in self._replies:
            reply.release()
        self.sender.begin_close()
        self.sender.join(DEADLINE_S)

    def _take_burst(
        self, outbox: ChannelOutbox, ack_address: str | None, numbers: Mapping[str, float] | None
    ) -> TokenBurst | None:
        self.before_take()
        with self._lock:
            if not (outbox.has_output or numbers):
                return None
            return outbox.take_burst(ack_address=ack_address, numbers=numbers)

    def _retire(self, sender: ChannelSender) -> bool:
        assert sender is self.sender
        self.before_retire()
        with self._lock:
            if self.is_live or not sender.is_idle or (self.outbox.has_output and not sender.may_discard):
                return False
        self.is_retired.set()
        return True


def tokens_of(bursts: list[TokenBurst]) -> list[list[int]]:
    return [list(burst.token_ids) for burst in bursts]
