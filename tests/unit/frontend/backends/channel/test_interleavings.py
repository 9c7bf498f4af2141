"""Every request ends exactly once, whatever the order of requests, bursts, ends of the channel and failures."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from frontend.backends.channel.client import ChannelClient
from frontend.backends.channel.session import Endpoint
from frontend.backends.grpc_channel import TritonChannel
from llm_pipeline.protocol.channel import BundleItem, TextBurst
from llm_pipeline.protocol.errors import PipelineError
from llm_pipeline.protocol.messages import TextChunk
from tests.support.app import until
from tests.support.channel_triton import ChannelTriton, ClientSide, Completion, channel_triton, parameters


class Event(Enum):
    """One step of a scenario."""

    REQUESTS = auto()  # some requests in the same moment
    BURST = auto()  # chunks for some of the live requests
    ENDS = auto()  # the same, and the end of some
    END_CHANNEL = auto()  # normally: what follows waits for the next one
    WAIT = auto()
    FAIL_CHANNEL = auto()
    SKIP_SERIAL = auto()
    FAIL_BUNDLES = auto()  # until the next WAIT


NORMAL = (Event.REQUESTS, Event.BURST, Event.ENDS, Event.END_CHANNEL, Event.WAIT)


@dataclass
class Scenario:
    """Plays decode, and records what it sent for each request."""

    triton: ChannelTriton
    client: ChannelClient
    completions: dict[str, Completion] = field(default_factory=dict)
    sent: dict[str, list[str]] = field(default_factory=dict)
    live: dict[str, ClientSide] = field(default_factory=dict)  # requests in decode
    broken: set[str] = field(default_factory=set)  # ids of clients whose channel has failed

    def on_bundle(self, side: ClientSide, items: list[BundleItem]) -> None:
        self.live |= {item.parameters.request_key: side for item in items}

    async def play(self, event: Event, choices: list[int]) -> None:
        if event is Event.REQUESTS:
            for _ in choices:
                key = f"key-{len(self.completions)}"
                self.completions[key], self.sent[key] = Completion(self.client, parameters(key)), []
        elif event in (Event.BURST, Event.ENDS):
            self.burst(choices, with_ends=event is Event.ENDS)
        elif event is Event.WAIT:
            self.triton.bundle_failure = None
            await asyncio.sleep(0.001 * len(choices))
        elif event is Event.FAIL_BUNDLES:
            self.triton.bundle_failure = "in ensemble 'ensemble', Failed to increase the shared memory pool size"
        elif self.triton.clients:
            self.change_channel(event, self.triton.client)
        await asyncio.sleep(0)

    def change_channel(self, event: Event, side: ClientSide) -> None:
        if event is Event.END_CHANNEL:
            side.end_channel()
        elif side.has_channel:
            self.broken.add(side.client_id)
            if event is Event.FAIL_CHANNEL:
                side.fail_channel("in ensemble 'ensemble', Stub process 'postprocess_0_0' is not healthy.")
            else:
                side.serial += 1
                side.send(TextBurst(side.serial))

    def burst(self, choices: list[int], *, with_ends: bool) -> None:
        """One burst for each client with live requests; the first choice of those ends with it."""
        for side in set(map(id, self.live.values())):
            self._burst([key for key, other in self.live.items() if id(other) == side], choices, with_ends)

    def _burst(self, keys: list[str], choices: list[int], with_ends: bool) -> None:
        chosen = [keys[choice % len(keys)] for choice in choices]  # a request may have several chunks
        chunks: list[tuple[str, str | TextChunk]] = []
        for key in chosen:
            text = f"{key}:{len(self.sent[key])} "
            self.sent[key].append(text)
            chunks.append((key, text))
        side = self.live[keys[0]]
        ends = chosen[:1] if with_ends else []
        side.burst(*chunks, ends=ends)
        for key in ends:
            del self.live[key]

    async def finish(self) -> None:
        """Ends every request that decode still has."""
        self.triton.bundle_failure = None
        await until(lambda: all(each.task.done() or key in self.live for key, each in self.completions.items()))
        for key, side in list(self.live.items()):
            if side.client_id not in self.broken:
                side.burst(ends=[key])
        await asyncio.wait({each.task for each in self.completions.values()}, timeout=10)


def run(script: list[tuple[Event, list[int]]], max_age_s: float, check: Callable[[Scenario], None]) -> None:
    async def play() -> None:
        async with channel_triton() as triton:
            connection = TritonChannel(triton.address)
            client = ChannelClient(Endpoint(connection, "ensemble", ignore, ignore), max_age_s=max_age_s)
            scenario = Scenario(triton, client)
            triton.on_bundle = scenario.on_bundle
            for event, choices in [(Event.REQUESTS, [0]), *script]:
                await scenario.play(event, choices)
            await scenario.finish()
            triton.end_channels()
            await client.close()
            await connection.close()
            check(scenario)

    asyncio.run(play())


async def ignore(*message: Any) -> None:
    pass


def scripts(events: tuple[Event, ...]) -> st.SearchStrategy[list[tuple[Event, list[int]]]]:
    choices = st.lists(st.integers(0, 1000), min_size=1, max_size=6)
    return st.lists(st.tuples(st.sampled_from(events), choices), max_size=40)


ages = st.sampled_from([0.0, 0.002, 60.0])


@settings(max_examples=60, deadline=None)
@given(script=scripts(NORMAL), max_age_s=ages)
def test_no_chunk_is_lost_doubled_or_out_of_order_while_calls_end_normally(
    script: list[tuple[Event, list[int]]], max_age_s: float
) -> None:
    def check(scenario: Scenario) -> None:
        for key, completion in scenario.completions.items():
            assert completion.task.exception() is None
            assert completion.texts == scenario.sent[key]
        assert len(scenario.triton.clients) == 1

    run(script, max_age_s, check)


@settings(max_examples=60, deadline=None)
@given(script=scripts(tuple(Event)), max_age_s=ages)
def test_every_request_ends_once_with_a_prefix_of_its_chunks(
    script: list[tuple[Event, list[int]]], max_age_s: float
) -> None:
    def check(scenario: Scenario) -> None:
        for key, completion in scenario.completions.items():
            sent, error = scenario.sent[key], completion.task.exception()
            assert completion.texts == sent[: len(completion.texts)]
            assert isinstance(error, PipelineError) if error is not None else completion.texts == sent
        assert scenario.triton.cancelled_calls == 0

    run(script, max_age_s, check)
