"""A channel's response stream that records bursts, and the streams of requests read from them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from llm_pipeline.protocol.channel import StreamEnd, StreamStart, TokenBurst
from llm_pipeline.protocol.channel_json import token_burst_from_json
from llm_pipeline.protocol.errors import PipelineError
from llm_pipeline.protocol.messages import PromptLogprobs, TopLogprobs
from tests.support.waiting import DEADLINE_S


class Gate:
    """Records what passes. Between `hold` and `release`, `pass_through` blocks, as in a handshake with Triton."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._is_open = threading.Event()
        self._is_open.set()
        self._blocked = 0

    def pass_through(self, record: Callable[[], None]) -> None:
        with self._changed:
            self._blocked += 1
            self._changed.notify_all()
        assert self._is_open.wait(DEADLINE_S)
        with self._changed:
            self._blocked -= 1
            record()
            self._changed.notify_all()

    def hold(self) -> None:
        self._is_open.clear()

    def release(self) -> None:
        self._is_open.set()

    def wait_until_blocked(self) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self._blocked, DEADLINE_S), "nothing is being sent"

    def wait_for(self, condition: Callable[[], object], recorded: Callable[[], object]) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, DEADLINE_S), recorded()


class RecordingReply:
    """The response stream of a channel. `fails_for` selects the bursts for which `send` raises."""

    def __init__(self, fails_for: Callable[[TokenBurst], bool] = lambda burst: False) -> None:
        self.bursts: list[TokenBurst] = []
        self.sizes: list[int] = []  # in bytes
        self.error: PipelineError | None = None
        self.is_finished = False
        self._fails_for = fails_for
        self._gate = Gate()
        self.hold = self._gate.hold
        self.release = self._gate.release
        self.wait_until_send_blocks = self._gate.wait_until_blocked

    @property
    def is_over(self) -> bool:
        return self.is_finished or self.error is not None

    def send(self, burst: bytes) -> None:
        parsed = token_burst_from_json(burst)
        if self._fails_for(parsed):
            raise RuntimeError("no room in shared memory")
        self._gate.pass_through(lambda: self._record(parsed, len(burst)))

    def finish(self) -> None:
        self._gate.pass_through(self._end)

    def fail(self, error: PipelineError) -> None:
        self._gate.pass_through(lambda: self._end(error))

    def wait_for(self, count: int) -> list[TokenBurst]:
        """Returns the bursts so far, as soon as there are `count`."""
        self._gate.wait_for(lambda: len(self.bursts) >= count, lambda: self.bursts)
        return list(self.bursts)

    def wait_for_ends(self, count: int = 1) -> list[TokenBurst]:
        """Returns the bursts so far, as soon as they have the ends of `count` requests."""
        self._gate.wait_for(lambda: sum(len(burst.ends) for burst in self.bursts) >= count, lambda: self.bursts)
        return list(self.bursts)

    def wait_until_over(self) -> None:
        """Waits until the stream has been ended, normally or with an error."""
        self._gate.wait_for(lambda: self.is_over, lambda: self.bursts)

    def _record(self, burst: TokenBurst, size: int) -> None:
        assert not self.is_over, "a burst after the end of the stream"
        self.bursts.append(burst)
        self.sizes.append(size)

    def _end(self, error: PipelineError | None = None) -> None:
        assert not self.is_over, "a second end of the stream"
        self.error = error
        self.is_finished = error is None


@dataclass
class RecordedStream:
    """All that bursts contained about one request."""

    start: StreamStart | None = None
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float | None] = field(default_factory=list)
    top_logprobs: list[TopLogprobs] = field(default_factory=list)
    prompt_logprobs: PromptLogprobs | None = None
    end: StreamEnd | None = None


def streams_of(bursts: Iterable[TokenBurst], *, first_serial: int = 0) -> dict[int, RecordedStream]:
    """Puts streams together by slot, and checks the rules of bursts.

    Serials count up; a burst has each slot once; a start comes first and an end last; logprobs belong to the burst's
    tokens.
    """
    streams: dict[int, RecordedStream] = {}
    for serial, burst in enumerate(bursts, start=first_serial):
        assert burst.serial == serial, "a burst is lost or doubled"
        for start in burst.starts:
            assert start.slot not in streams, "a second start, or a start after something else"
            streams[start.slot] = RecordedStream(start)
        _add_tokens(burst, streams)
        for end in burst.ends:
            stream = streams.setdefault(end.slot, RecordedStream())  # a request that is refused has no start
            assert stream.end is None, "a second end"
            stream.end = end
    return streams


def _add_tokens(burst: TokenBurst, streams: dict[int, RecordedStream]) -> None:
    counts = dict(zip(burst.slots, burst.counts, strict=True))
    assert len(counts) == len(burst.slots), "a slot occurs twice"
    assert sum(burst.counts) == len(burst.token_ids)
    assert all(count > 0 for count in burst.counts)
    position = 0
    for slot, count in counts.items():
        assert streams[slot].end is None, "tokens after the end"
        streams[slot].token_ids += burst.token_ids[position : position + count]
        position += count
    assert len({entry.slot for entry in burst.logprobs}) == len(burst.logprobs)
    for entry in burst.logprobs:
        stream = streams[entry.slot]
        assert stream.end is None, "logprobs after the end"
        assert len(entry.logprobs) in (0, counts.get(entry.slot, 0))
        assert len(entry.top_logprobs) in (0, counts.get(entry.slot, 0))
        stream.logprobs += entry.logprobs
        stream.top_logprobs += entry.top_logprobs
        assert entry.prompt_logprobs is None or stream.prompt_logprobs is None
        stream.prompt_logprobs = entry.prompt_logprobs or stream.prompt_logprobs
