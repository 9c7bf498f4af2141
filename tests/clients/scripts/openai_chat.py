"""openai-python's chat: sync and async, whole and streamed, logprobs, `n`, parts, errors, strict validation."""

from __future__ import annotations

import asyncio

import openai
from endpoint import API_KEY, BASE_URL, MODEL, report
from weather import MESSAGES

ACCESS = {"base_url": BASE_URL, "api_key": API_KEY, "max_retries": 0}
GREEDY = {"model": MODEL, "messages": MESSAGES, "max_completion_tokens": 8, "temperature": 0}


def text_of(chunks: list) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def plain(client: openai.OpenAI) -> dict[str, object]:
    answer = client.chat.completions.create(**GREEDY, logprobs=True, top_logprobs=2)
    chunks = list(client.chat.completions.create(**GREEDY, stream=True, stream_options={"include_usage": True}))
    parts = [{"role": "user", "content": [{"type": "text", "text": MESSAGES[0]["content"]}]}]
    many = client.chat.completions.create(**GREEDY, n=2)
    logprobs = answer.choices[0].logprobs.content
    return {
        "text": answer.choices[0].message.content,
        "finish_reason": answer.choices[0].finish_reason,
        "refusal": answer.choices[0].message.refusal,
        "usage": [answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens],
        "logprob_text": b"".join(bytes(entry.bytes) for entry in logprobs).decode(),
        "top_sizes": [len(entry.top_logprobs) for entry in logprobs],
        "streamed": text_of(chunks),
        "stream_usage": chunks[-1].usage.total_tokens,
        "of_parts": client.chat.completions.create(**{**GREEDY, "messages": parts}).choices[0].message.content,
        "many": [choice.message.content for choice in many.choices],
    }


def refused(client: openai.OpenAI, **body: object) -> list[object]:
    try:
        client.chat.completions.create(**{**GREEDY, **body})
    except openai.APIStatusError as error:
        return [type(error).__name__, error.status_code, error.code, error.param]
    return []


async def asynchronously() -> dict[str, object]:
    async with openai.AsyncOpenAI(**ACCESS) as client:
        answer = await client.chat.completions.parse(**GREEDY)
        async with client.chat.completions.stream(**GREEDY) as stream:
            deltas = [event.delta async for event in stream if event.type == "content.delta"]
    return {"text": answer.choices[0].message.content, "streamed": "".join(deltas)}


def main() -> None:
    client = openai.OpenAI(**ACCESS)
    strict = openai.OpenAI(**ACCESS, _strict_response_validation=True)
    report(
        {
            "version": openai.__version__,
            **plain(client),
            "strict_text": strict.chat.completions.create(**GREEDY).choices[0].message.content,
            "strict_streamed": text_of(list(strict.chat.completions.create(**GREEDY, stream=True))),
            "async": asyncio.run(asynchronously()),
            "bad_role": refused(client, messages=[{"role": "robot", "content": "a"}]),
            "bad_tool": refused(client, tools=[{"type": "function", "function": {"name": "a b"}}]),
            "unknown_model": refused(client, model="no-such-model"),
        }
    )


main()
