"""A channel's outbox gathers the steps of all requests of a client and gives them back as bursts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_pipeline.protocol.channel import StreamEnd, StreamLogprobs, StreamStart, TokenBurst
from llm_pipeline.protocol.messages import FinishReason, PromptLogprobs, TextOptions
from llm_pipeline.stages.decode.channel_outbox import MAX_BURST_TOKENS, TOKENS_PER_LOGPROB, ChannelOutbox
from tests.support.recorded_bursts import RecordedStream, streams_of

PROMPT = PromptLogprobs((-1.0, None), (((7,), (-0.1,)), ((8,), (-0.2,))))


def make_outbox(*slots: int) -> ChannelOutbox:
    outbox = ChannelOutbox("front end", 1)
    for slot in slots:
        start(outbox, slot)
    return outbox


def start(outbox: ChannelOutbox, slot: int) -> None:
    outbox.start(StreamStart(slot, f"key {slot}", TextOptions(prompt_tokens=slot)))


def add(outbox: ChannelOutbox, tokens: dict[int, Sequence[int]], logprobs: Sequence[StreamLogprobs] = ()) -> None:
    """Adds one engine step: tokens by slot."""
    outbox.add(
        np.array(list(tokens), np.int64),
        np.array([len(token_ids) for token_ids in tokens.values()], np.int64),
        np.array([token_id for token_ids in tokens.values() for token_id in token_ids], np.int64),
        logprobs,
    )


def end(outbox: ChannelOutbox, slot: int, reason: FinishReason = FinishReason.STOP) -> None:
    outbox.end(StreamEnd(slot, reason))


def take_all(outbox: ChannelOutbox, max_tokens: int | None = None) -> list[TokenBurst]:
    bursts = []
    while outbox.has_output:
        bursts.append(outbox.take_burst(max_tokens))
    return bursts


def logprobs_of(token_ids: Iterable[int]) -> dict[str, Any]:
    """Logprobs that show the token they belong to."""
    ids = tuple(token_ids)
    return {
        "logprobs": tuple(-float(token_id) for token_id in ids),
        "top_logprobs": tuple(((token_id,), (-float(token_id),)) for token_id in ids),
    }


# --- Any order of steps, ends and takes ------------------------------------------------------------------------------

SLOTS = range(5)
WITH_LOGPROBS = {1, 3}  # slots
actions = st.lists(
    st.tuples(st.just("step"), st.dictionaries(st.sampled_from(SLOTS), st.integers(0, 3), min_size=1))
    | st.tuples(st.just("end"), st.sampled_from(SLOTS))
    | st.tuples(st.just("take"), st.none()),
    max_size=60,
)


class Driver:
    """Does actions with an outbox, and keeps the streams that must come out."""

    def __init__(self, max_tokens: int | None) -> None:
        self._max_tokens = max_tokens
        self.outbox = make_outbox()
        self.expected: dict[int, RecordedStream] = {}
        self.bursts: list[TokenBurst] = []

    def do(self, name: str, argument: Any) -> None:
        if name == "step":
            self._step(argument)
        elif name == "end":
            stream = self._stream(argument)
            if stream.end is None:
                stream.end = StreamEnd(argument, FinishReason.STOP)
                self.outbox.end(stream.end)
        elif self.outbox.has_output:
            self._take()

    def drain(self) -> None:
        for slot in SLOTS:
            self.do("end", slot)
        while self.outbox.has_output:
            self._take()

    def _take(self) -> None:
        burst = self.outbox.take_burst(self._max_tokens)
        assert burst.token_ids or burst.ends or burst.logprobs, "an empty burst"
        assert self._max_tokens is None or len(burst.token_ids) <= self._max_tokens
        self.bursts.append(burst)

    def _stream(self, slot: int) -> RecordedStream:
        if slot not in self.expected:
            start(self.outbox, slot)
            self.expected[slot] = RecordedStream(StreamStart(slot, f"key {slot}", TextOptions(prompt_tokens=slot)))
        return self.expected[slot]

    def _step(self, counts: dict[int, int]) -> None:
        tokens: dict[int, Sequence[int]] = {}
        logprobs: list[StreamLogprobs] = []
        for slot, count in counts.items():
            stream = self._stream(slot)
            if stream.end is not None:
                continue
            token_ids = range(len(stream.token_ids), len(stream.token_ids) + count)
            if count:
                tokens[slot] = token_ids
            stream.token_ids += token_ids
            if slot in WITH_LOGPROBS:
                prompt = PROMPT if stream.prompt_logprobs is None else None
                stream.prompt_logprobs = PROMPT
                logprobs.append(StreamLogprobs(slot, **logprobs_of(token_ids), prompt_logprobs=prompt))
                stream.logprobs += logprobs[-1].logprobs
                stream.top_logprobs += logprobs[-1].top_logprobs
        if tokens or any(entry.prompt_logprobs for entry in logprobs):
            add(self.outbox, tokens, logprobs)


@settings(max_examples=300)
@given(actions, st.sampled_from([None, 1, 2]))
def test_any_order_of_steps_ends_and_takes_gives_every_stream_whole(
    actions: Sequence[tuple[str, Any]], max_tokens: int | None
) -> None:
    driver = Driver(max_tokens)
    for name, argument in actions:
        driver.do(name, argument)
    driver.drain()
    assert streams_of(driver.bursts) == driver.expected


# --- Bursts ----------------------------------------------------------------------------------------------------------


def test_a_burst_takes_all_that_has_gathered() -> None:
    outbox = make_outbox(1, 2)
    add(outbox, {1: [10], 2: [20]})
    add(outbox, {2: [21, 22], 1: [11]})
    end(outbox, 2)
    burst = outbox.take_burst(ack_address="here")
    assert (burst.client_id, burst.serial, burst.ack_address) == ("front end", 0, "here")
    assert (burst.slots, burst.counts, burst.token_ids) == ([1, 2], [2, 3], [10, 11, 20, 21, 22])
    assert [item.slot for item in burst.starts] == [1, 2]
    assert burst.ends == [StreamEnd(2, FinishReason.STOP)]
    assert not outbox.has_output


def test_the_arrays_of_a_step_stay_as_they_are() -> None:
    arrays = (np.array([1, 2]), np.array([2, 2]), np.array([10, 11, 20, 21]))
    copies = [array.copy() for array in arrays]
    outbox = make_outbox(1, 2)
    outbox.add(*arrays)
    take_all(outbox, max_tokens=1)
    assert all((array == copy).all() for array, copy in zip(arrays, copies, strict=True))


def test_a_start_waits_for_the_first_tokens_or_the_end_of_a_request() -> None:
    outbox = make_outbox(1)
    assert take_all(outbox) == []
    end(outbox, 1)
    (burst,) = take_all(outbox)
    assert ([item.slot for item in burst.starts], [item.slot for item in burst.ends]) == ([1], [1])


def test_a_request_that_is_refused_has_an_end_only() -> None:
    outbox = make_outbox()
    end(outbox, 9)
    burst = outbox.take_burst()
    assert (burst.slots, burst.starts, burst.ends) == ([], [], [StreamEnd(9, FinishReason.STOP)])


def test_a_burst_has_a_limit_and_the_ends_come_with_the_last() -> None:
    outbox = make_outbox(1, 2)
    for token_id in range(20):
        add(outbox, {1: [token_id] * 1000, 2: [token_id] * 1000})
    end(outbox, 1)
    bursts = take_all(outbox)
    assert [len(burst.token_ids) for burst in bursts] == [16_000, 16_000, 8_000]
    assert [len(burst.ends) for burst in bursts] == [0, 0, 1]
    assert len(streams_of(bursts)[1].token_ids) == 20_000


def test_an_end_comes_with_the_last_tokens_of_its_request_even_if_others_wait() -> None:
    """postprocess hides the last token of a request that ends with STOP, so it has to know that it is the last one."""
    outbox = make_outbox(1, 2)
    add(outbox, {1: [5], 2: [7]})
    add(outbox, {2: [8]})
    end(outbox, 1)
    end(outbox, 2)
    bursts = take_all(outbox, max_tokens=1)
    assert [burst.slots for burst in bursts] == [[1], [2], [2]]
    assert [[stream_end.slot for stream_end in burst.ends] for burst in bursts] == [[1], [], [2]]


def test_a_step_above_the_limit_is_one_burst() -> None:
    outbox = make_outbox(1)
    for _ in range(2):
        add(outbox, {1: [1] * (MAX_BURST_TOKENS + 1)})
    assert [len(burst.token_ids) for burst in take_all(outbox)] == [MAX_BURST_TOKENS + 1] * 2


@pytest.mark.parametrize("is_prompt", [False, True], ids=["of tokens", "of a prompt"])
def test_logprobs_count_towards_the_limit(is_prompt: bool) -> None:
    """Their JSON is many times as long as a token's."""
    outbox = make_outbox(1)
    values = tuple(-1.0 for _ in range(MAX_BURST_TOKENS // TOKENS_PER_LOGPROB // 2))
    for _ in range(4):
        if is_prompt:
            add(outbox, {}, [StreamLogprobs(1, prompt_logprobs=PromptLogprobs(values))])
        else:
            add(outbox, {1: [1] * len(values)}, [StreamLogprobs(1, values)])
    bursts = take_all(outbox)
    assert len(bursts) >= 2
    assert all(
        len(entry.logprobs) <= MAX_BURST_TOKENS // TOKENS_PER_LOGPROB for burst in bursts for entry in burst.logprobs
    )


def test_without_coalescing_a_burst_is_one_token_with_its_logprobs() -> None:
    outbox = make_outbox(1, 2)
    add(outbox, {1: [5, 6], 2: [7]}, [StreamLogprobs(1, **logprobs_of([5, 6])), StreamLogprobs(2, **logprobs_of([7]))])
    end(outbox, 2)
    bursts = take_all(outbox, max_tokens=1)
    assert [(burst.slots, burst.token_ids) for burst in bursts] == [([1], [5]), ([1], [6]), ([2], [7])]
    assert [burst.logprobs for burst in bursts] == [
        [StreamLogprobs(1, **logprobs_of([5]))],
        [StreamLogprobs(1, **logprobs_of([6]))],
        [StreamLogprobs(2, **logprobs_of([7]))],
    ]
    assert [len(burst.ends) for burst in bursts] == [0, 0, 1]


def test_without_coalescing_logprobs_of_a_prompt_without_tokens_come_too() -> None:
    """Beside the tokens of another request in the same step."""
    outbox = make_outbox(1, 2)
    add(outbox, {1: [5]}, [StreamLogprobs(2, prompt_logprobs=PROMPT)])
    streams = streams_of(take_all(outbox, max_tokens=1))
    assert (streams[1].token_ids, streams[2].prompt_logprobs) == ([5], PROMPT)


def test_output_that_is_dropped_is_gone_and_its_ends_are_counted() -> None:
    outbox = make_outbox(1, 2)
    add(outbox, {1: [5]})
    end(outbox, 1)
    end(outbox, 2)
    assert outbox.discard() == 2
    assert not outbox.has_output
