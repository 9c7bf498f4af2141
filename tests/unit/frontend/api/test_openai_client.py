"""The official client against a real server: responses, errors and retries."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest

from frontend.backends.fake import FakeGenerator, chunks
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from tests.support.app import KEY, MODEL, Running, real_server


def connect(served: Running, *, is_strict: bool) -> openai.AsyncOpenAI:
    base_url = str(served.client.base_url.join("/openai/v1"))
    return openai.AsyncOpenAI(base_url=base_url, api_key=KEY, max_retries=0, _strict_response_validation=is_strict)


@pytest.fixture(params=[False, True], ids=["loose", "strict"])
async def openai_client(served: Running, request: pytest.FixtureRequest) -> AsyncIterator[openai.AsyncOpenAI]:
    async with connect(served, is_strict=request.param) as client:
        yield client


@pytest.fixture
async def loose_client(served: Running) -> AsyncIterator[openai.AsyncOpenAI]:
    async with connect(served, is_strict=False) as client:
        yield client


async def test_completion(openai_client: openai.AsyncOpenAI) -> None:
    found = await openai_client.completions.create(model=MODEL, prompt="Hi", max_tokens=2)
    assert found.choices[0].text == " Paris,"
    assert found.choices[0].finish_reason == "length"
    assert found.usage is not None
    assert found.usage.total_tokens == 7
    assert found._request_id


async def test_stream(loose_client: openai.AsyncOpenAI) -> None:
    """Not strict: its type has no null finish_reason, which every server sends until the last chunk, OpenAI's too."""
    stream = await loose_client.completions.create(
        model=MODEL, prompt="Hi", max_tokens=2, stream=True, stream_options={"include_usage": True}
    )
    found = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].text for chunk in found[:-1]) == " Paris,"
    assert found[-1].usage is not None


async def test_many_choices(openai_client: openai.AsyncOpenAI) -> None:
    found = await openai_client.completions.create(model=MODEL, prompt=["a", "b"], n=2)
    assert [choice.index for choice in found.choices] == [0, 1, 2, 3]


async def test_fields_that_langchain_sends(openai_client: openai.AsyncOpenAI) -> None:
    await openai_client.completions.create(
        model=MODEL,
        prompt=["a"],
        temperature=0.7,
        top_p=1,
        frequency_penalty=0,
        presence_penalty=0,
        n=1,
        seed=None,
        logprobs=None,
        max_tokens=256,
    )


async def test_models(openai_client: openai.AsyncOpenAI) -> None:
    assert [model.id async for model in openai_client.models.list()] == [MODEL]
    assert (await openai_client.models.retrieve(MODEL)).id == MODEL


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"max_tokens": 0}, openai.BadRequestError),
        ({"model": "other"}, openai.NotFoundError),
        ({"logprobs": 21}, openai.BadRequestError),
    ],
)
async def test_errors(openai_client: openai.AsyncOpenAI, fields: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error) as caught:
        await openai_client.completions.create(**{"model": MODEL, "prompt": "Hi", **fields})
    assert isinstance(caught.value, openai.APIStatusError)
    assert caught.value.request_id
    assert caught.value.param == next(iter(fields))
    assert caught.value.code


async def test_wrong_key(served: Running) -> None:
    async with openai.AsyncOpenAI(
        base_url=str(served.client.base_url.join("/v1")), api_key="x", max_retries=0
    ) as client:
        with pytest.raises(openai.AuthenticationError):
            await client.models.list()


async def test_errors_within_a_stream_are_raised(served: Running, loose_client: openai.AsyncOpenAI) -> None:
    failure = PipelineError(ErrorCode.ENGINE_UNAVAILABLE, "gone")
    served.generator.script = lambda _: [*chunks("a", "b")[:1], failure]
    with pytest.raises(openai.APIError, match="gone"):
        async for _ in await loose_client.completions.create(model=MODEL, prompt="Hi", stream=True):
            pass


async def test_a_deterministic_500_is_not_retried() -> None:
    async with real_server(FakeGenerator(lambda _: [PipelineError(ErrorCode.INTERNAL_ERROR, "no")])) as app:
        async with openai.AsyncOpenAI(base_url=str(app.client.base_url.join("/v1")), api_key=KEY) as client:
            with pytest.raises(openai.InternalServerError):
                await client.completions.create(model=MODEL, prompt="Hi")
        assert len(app.generator.requests) == 1
