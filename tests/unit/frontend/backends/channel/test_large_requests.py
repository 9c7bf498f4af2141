"""Many large requests at once are encoded as they are sent, with a real gRPC server that plays decode."""

from __future__ import annotations

from frontend.backends.grpc_channel import TritonChannel
from frontend.backends.triton import TritonGenerator
from llm_pipeline.protocol.channel import BundleItem
from tests.support.channel_triton import ClientSide, Completion, channel_triton, last_chunk, parameters
from tests.support.loop_watch import LoopWatch

CHOICES = 48


def end_at_once(client: ClientSide, items: list[BundleItem]) -> None:
    keys = [item.parameters.request_key for item in items]
    client.burst(*((key, last_chunk(key)) for key in keys), ends=keys)


async def test_many_choices_of_a_large_prompt_do_not_hold_the_event_loop() -> None:
    """128 choices of 4 MiB would take half a gigabyte and a second, if all were encoded in the same moment."""
    prompt = '\n"' * 2**19
    async with channel_triton() as triton:
        generator = TritonGenerator(TritonChannel(triton.address), "ensemble")
        triton.on_bundle = end_at_once
        with LoopWatch() as watch:
            completions = [Completion(generator, parameters(f"key-{number}", prompt)) for number in range(CHOICES)]
            assert [await each.over() for each in completions] == [each.key for each in completions]
        triton.end_channels()
        await generator.close()
    assert len(triton.bundles) == CHOICES
    assert watch.longest_s < 0.15  # the fake Triton reads its bundles on the same event loop
