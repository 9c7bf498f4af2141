"""The fake generator: the rules of a generator, without Triton."""

from __future__ import annotations

import asyncio

import pytest

from frontend.backends.factory import create_generator
from frontend.backends.fake import FakeGenerator, chunks, forever
from frontend.models.registry import deployment_of
from frontend.observability.metrics import Metrics
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from llm_pipeline.protocol.messages import CompletionParameters, FinishReason
from tests.support.app import completed, make_settings, until


def parameters(key: str = "key", *, stream: bool = True, max_tokens: int | None = None) -> CompletionParameters:
    return CompletionParameters(key, "request", prompt_text="Hi", max_tokens=max_tokens, stream=stream)


async def test_default_script_returns_fixed_words_up_to_max_tokens() -> None:
    result = await completed(FakeGenerator(), parameters(max_tokens=3))
    assert [chunk.text for chunk in result] == [" Paris", ",", " the"]
    assert [chunk.finish_reason for chunk in result] == [None, None, FinishReason.LENGTH]


async def test_without_streaming_the_completion_is_one_chunk() -> None:
    (chunk,) = await completed(FakeGenerator(), parameters(max_tokens=3, stream=False))
    assert (chunk.text, chunk.completion_tokens, chunk.finish_reason) == (" Paris, the", 3, FinishReason.LENGTH)


async def test_exceptions_of_the_script_are_raised() -> None:
    generator = FakeGenerator(script=lambda _: [*chunks("a", "b")[:1], PipelineError(ErrorCode.QUEUE_FULL, "full")])
    with pytest.raises(PipelineError, match="full"):
        await completed(generator, parameters())


@pytest.mark.parametrize("records_requests", [True, False])
async def test_cancellation_ends_a_running_request(records_requests: bool) -> None:
    generator = FakeGenerator(forever(), records_requests=records_requests)
    request = asyncio.create_task(completed(generator, parameters()))
    await until(lambda: generator.running == {"key"})
    await generator.cancel("key")
    result = await asyncio.wait_for(request, 5)
    assert result[-1].finish_reason is FinishReason.CANCELLED
    assert generator.running == set()


async def test_without_recording_nothing_is_kept_of_requests() -> None:
    generator = FakeGenerator(records_requests=False)
    before = {name: len(value) for name, value in vars(generator).items() if isinstance(value, (list, dict, set))}
    for number in range(3):
        await completed(generator, parameters(str(number)))
        await generator.cancel(str(number))
    after = {name: len(value) for name, value in vars(generator).items() if isinstance(value, (list, dict, set))}
    assert after == before


def test_setting_backend_selects_the_fake_generator() -> None:
    settings = make_settings(backend="fake")
    (model,) = deployment_of(settings).models
    assert isinstance(create_generator(model, settings, Metrics().endpoints_of_model("tiny")), FakeGenerator)
