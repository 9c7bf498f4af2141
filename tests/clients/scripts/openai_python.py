"""openai-python: sync and async, whole and streamed, lists, logprobs, models, errors by class, strict validation."""

from __future__ import annotations

import asyncio

import openai
from endpoint import API_KEY, BASE_URL, MODEL, PROMPT, report

GREEDY = {"model": MODEL, "prompt": PROMPT, "max_tokens": 8, "temperature": 0}
ACCESS = {"base_url": BASE_URL, "api_key": API_KEY, "max_retries": 0}


def refused(client: openai.OpenAI, **body: object) -> dict[str, object]:
    """The class of the exception, and the fields that the client read from the error's body and headers."""
    try:
        client.completions.create(**{**GREEDY, **body})
    except openai.APIStatusError as error:
        return {
            "class": type(error).__name__,
            "status": error.status_code,
            "code": error.code,
            "param": error.param,
            "has_request_id": bool(error.request_id),
        }
    return {"class": None}


def strict_stream(client: openai.OpenAI) -> str | None:
    try:
        list(client.completions.create(**GREEDY, stream=True))
    except openai.APIResponseValidationError as error:
        return f"{type(error).__name__}: {error.__cause__}"
    return None


async def asynchronously() -> dict[str, object]:
    async with openai.AsyncOpenAI(**ACCESS) as client:
        answers = await asyncio.gather(*(client.completions.create(**GREEDY) for _ in range(3)))
        stream = await client.completions.create(**GREEDY, stream=True)
        streamed = "".join([chunk.choices[0].text async for chunk in stream])
        models = [model.id async for model in client.models.list()]
    return {"texts": [answer.choices[0].text for answer in answers], "streamed": streamed, "models": models}


def main() -> None:
    client = openai.OpenAI(**ACCESS)
    answer = client.completions.create(**GREEDY, logprobs=2)
    stream = list(client.completions.create(**GREEDY, stream=True, stream_options={"include_usage": True}))
    many = client.completions.create(**{**GREEDY, "prompt": [PROMPT, "Once upon a time"]}, n=2)
    sampled = [client.completions.create(**{**GREEDY, "temperature": 1}, seed=7).choices[0].text for _ in range(2)]
    strict = openai.OpenAI(**ACCESS, _strict_response_validation=True)
    report(
        {
            "version": openai.__version__,
            "text": answer.choices[0].text,
            "finish_reason": answer.choices[0].finish_reason,
            "usage": [answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens],
            "log_prob_tokens": answer.choices[0].logprobs.tokens,
            "top_sizes": [len(top) for top in answer.choices[0].logprobs.top_logprobs],
            "streamed": "".join(chunk.choices[0].text for chunk in stream if chunk.choices),
            "stream_end": [chunk.choices[0].finish_reason for chunk in stream if chunk.choices][-1],
            "stream_usage": stream[-1].usage.total_tokens,
            "indices": [choice.index for choice in many.choices],
            "sampled": sampled,
            "async": asyncio.run(asynchronously()),
            "model": client.models.retrieve(MODEL).id,
            "strict_text": strict.completions.create(**GREEDY).choices[0].text,
            "strict_stream": strict_stream(strict),
            "unknown_model": refused(client, model="no-such-model"),
            "bad_field": refused(client, temperature=9),
            "bad_key": refused(client.with_options(api_key="sk-wrong")),
        }
    )


main()
