"""Every request ends exactly once when submissions, steps, cancellations and refusals overlap at random.

Some clients have a response stream for each request, and some a channel, which they replace at random.
"""

from __future__ import annotations

import random
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from llm_pipeline.executors.port import ExecutorStats, OutputSink
from llm_pipeline.protocol.channel import PreparedItem
from llm_pipeline.protocol.messages import FinishReason, GenerationRequest, Guide, GuideType, RequestEnd, TokenChunk
from llm_pipeline.stages.decode.channel_sender import ChannelLimits
from llm_pipeline.stages.decode.stage import DecodeStage
from tests.support.driven_guides import RandomGuides
from tests.support.driven_stage import DEADLINE_S, REFUSAL, VOCAB_SIZE, RecordingSender, make_step
from tests.support.recorded_bursts import RecordedStream, RecordingReply, streams_of
from tests.support.sample_requests import make_request
from tests.support.waiting import wait_until

REQUESTS = 250  # of each client
MOST = 0.7  # of the requests have ended before the stage is closed


class RandomExecutor:
    """Makes random steps on its own thread, refuses some requests, and reacts late to cancellations."""

    def __init__(self, sink: OutputSink, seed: int) -> None:
        self._sink = sink
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._live: dict[int, GenerationRequest] = {}
        self._cancelled: set[int] = set()
        self.made: dict[str, list[int]] = defaultdict(list)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def submit(self, number: int, request: GenerationRequest) -> None:
        with self._lock:
            if self._random.random() < 0.1:
                raise self._random.choice([REFUSAL, ValueError("a bug")])
            self._live[number] = request

    def cancel(self, number: int) -> None:
        with self._lock:
            if number in self._live:
                self._cancelled.add(number)

    def stats(self) -> ExecutorStats:
        with self._lock:
            return ExecutorStats(len(self._live), 0)

    def close(self) -> None:
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closing.is_set():
            tokens: dict[int, Sequence[int]] = {}
            ends: list[RequestEnd] = []
            with self._lock:
                for number in list(self._live):
                    self._advance(number, tokens, ends)
            self._sink(make_step(tokens, ends=ends))
            time.sleep(0)  # let other threads run
        with self._lock:
            ends = [RequestEnd(number, FinishReason.CANCELLED) for number in self._live]
        self._sink(make_step({}, ends=ends))

    def _advance(self, number: int, tokens: dict[int, Sequence[int]], ends: list[RequestEnd]) -> None:
        chance = self._random.random()
        if number in self._cancelled and chance < 0.5:
            ends.append(self._end(number, finish_reason=FinishReason.CANCELLED))
            return
        if chance > 0.98:
            ends.append(self._end(number, error=REFUSAL))
            return
        request = self._live[number]
        made = self.made[request.key]
        count = min(self._random.randint(0, 3), request.max_tokens - len(made))
        tokens[number] = range(len(made), len(made) + count)
        made.extend(tokens[number])
        if len(made) == request.max_tokens:
            ends.append(self._end(number, finish_reason=FinishReason.LENGTH))

    def _end(self, number: int, **end: Any) -> RequestEnd:
        del self._live[number]
        return RequestEnd(number, **end)


def perhaps_guided(request: GenerationRequest, dice: random.Random) -> GenerationRequest:
    """Gives some requests a guide."""
    return replace(request, guide=Guide(GuideType.REGEX, "a")) if dice.random() < 0.3 else request


class StreamClient(threading.Thread):
    """A client with a response stream for each request."""

    def __init__(self, name: str, stage: DecodeStage, seed: int) -> None:
        super().__init__(name=name, daemon=True)
        self._stage = stage
        self._dice = random.Random(f"{seed} {name}")
        self._sender = RecordingSender()

    def run(self) -> None:
        for index in range(REQUESTS):
            key = f"{self.name}-{index}"
            if self._dice.random() < 0.1:
                self._stage.cancel(key)
            max_tokens, is_stream = self._dice.randint(1, 20), self._dice.random() < 0.7
            request = make_request(key, max_tokens=max_tokens, stream=is_stream)
            self._stage.submit(perhaps_guided(request, self._dice), self._sender)
            if self._dice.random() < 0.3:
                self._stage.cancel(key)

    def wait_for_most(self) -> None:
        self._sender.wait_for_endings(int(REQUESTS * MOST))

    def check(self, made: dict[str, list[int]]) -> None:
        by_key: dict[str, list[TokenChunk]] = defaultdict(list)
        for chunk in self._sender.chunks:
            by_key[chunk.key].append(chunk)
        assert len(by_key) == REQUESTS
        for key, chunks in by_key.items():
            assert [chunk.index for chunk in chunks] == list(range(len(chunks)))
            assert [chunk.is_final for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
            assert [chunk.text_options is not None for chunk in chunks] == [True] + [False] * (len(chunks) - 1)
            assert [token for chunk in chunks for token in chunk.token_ids] == made[key]


class ChannelClient(threading.Thread):
    """A client with a channel, which ends as soon as it is idle and is replaced at random."""

    def __init__(self, name: str, stage: DecodeStage, seed: int) -> None:
        super().__init__(name=name, daemon=True)
        self._stage = stage
        self._dice = random.Random(f"{seed} {name}")
        self._replies: list[RecordingReply] = []
        self._keys: dict[int, str] = {}  # by slot

    def run(self) -> None:
        while len(self._keys) < REQUESTS:
            if not self._replies or self._replies[-1].is_over or self._dice.random() < 0.2:
                self._open()
            items = [self._item() for _ in range(min(self._dice.randint(1, 8), REQUESTS - len(self._keys)))]
            self._stage.submit_bundle(self.name, items)
            for item in items:
                if self._dice.random() < 0.3:
                    self._stage.cancel(self._keys[item.slot])
        self._open()  # lasts until all requests have ended

    def _item(self) -> PreparedItem:
        slot = len(self._keys)
        key = self._keys[slot] = f"{self.name}-{slot}"
        if self._dice.random() < 0.1:
            self._stage.cancel(key)
        if self._dice.random() < 0.05:
            return PreparedItem(slot, error=REFUSAL)
        request = make_request(key, max_tokens=self._dice.randint(1, 20), stream=True)
        return PreparedItem(slot, perhaps_guided(request, self._dice))

    def _open(self) -> None:
        self._replies.append(RecordingReply())
        self._stage.open_channel(self.name, self._replies[-1])

    def wait_for_most(self) -> None:
        wait_until(self._have_most_ended, limit_s=DEADLINE_S)

    def _have_most_ended(self) -> bool:
        bursts = [burst for reply in self._replies for burst in reply.bursts]
        return sum(len(burst.ends) for burst in bursts) >= REQUESTS * MOST

    def check(self, made: dict[str, list[int]]) -> None:
        streams = self._streams()
        assert len(streams) == REQUESTS
        for slot, stream in streams.items():
            key = self._keys[slot]
            assert stream.end is not None
            assert stream.token_ids == made[key]
            assert stream.start is None or stream.start.key == key
        assert all(reply.is_finished for reply in self._replies)

    def _streams(self) -> dict[int, RecordedStream]:
        """Reads one reply after the other; serials count from 0 again if the channel had ended between two."""
        channels: list[list[Any]] = [[]]
        for burst in (burst for reply in self._replies for burst in reply.bursts):
            if burst.serial == 0:
                channels.append([])
            channels[-1].append(burst)
        streams: dict[int, RecordedStream] = {}
        for bursts in channels:
            new = streams_of(bursts)
            assert not streams.keys() & new.keys(), "a stream goes on in another channel"
            streams.update(new)
        return streams


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("coalesce", [True, False], ids=["coalesced", "token by token"])
def test_every_request_ends_exactly_once_under_random_load(seed: int, coalesce: bool) -> None:
    executors: list[RandomExecutor] = []

    def create(sink: OutputSink) -> RandomExecutor:
        executors.append(RandomExecutor(sink, seed))
        return executors[0]

    guides = RandomGuides(seed)
    stage = DecodeStage(
        create,
        max_queued_requests=1000,
        vocab_size=VOCAB_SIZE,
        coalesce=coalesce,
        guides=guides,
        channel_limits=ChannelLimits(linger_s=0.005, open_timeout_s=DEADLINE_S),
    )
    clients: list[StreamClient | ChannelClient] = [
        *(StreamClient(f"stream {number}", stage, seed) for number in range(4)),
        *(ChannelClient(f"channel {number}", stage, seed) for number in range(3)),
    ]
    for client in clients:
        client.start()
    for client in clients:
        client.join(DEADLINE_S)
        client.wait_for_most()
    stage.close()  # ends the requests that are still running
    for client in clients:
        client.check(executors[0].made)
    guides.check_closed()
