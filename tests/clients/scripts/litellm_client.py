"""litellm's text completion by its route `text-completion-openai/`: sync, async, streams, errors by class."""

from __future__ import annotations

import asyncio
from importlib.metadata import version

import litellm
import openai
from endpoint import API_KEY, BASE_URL, MODEL, PROMPT, report

ACCESS = {
    "model": f"text-completion-openai/{MODEL}",
    "api_base": BASE_URL,
    "api_key": API_KEY,
    "prompt": PROMPT,
    "max_tokens": 8,
    "temperature": 0,
}


def refused(**changed: object) -> str | None:
    try:
        litellm.text_completion(**{**ACCESS, **changed})
    except openai.APIStatusError as error:  # what litellm's own classes extend
        return type(error).__name__
    return None


async def asynchronously() -> str:
    stream = await litellm.atext_completion(**ACCESS, stream=True)
    return "".join([chunk.choices[0].text or "" async for chunk in stream])


def main() -> None:
    answer = litellm.text_completion(**ACCESS, logprobs=1)
    stream = list(litellm.text_completion(**ACCESS, stream=True))
    report(
        {
            "version": version("litellm"),
            "text": answer.choices[0].text,
            "finish_reason": answer.choices[0].finish_reason,
            "usage": answer.usage.total_tokens,
            "streamed": "".join(chunk.choices[0].text or "" for chunk in stream),
            "async_streamed": asyncio.run(asynchronously()),
            "unknown_model": refused(model="text-completion-openai/no-such-model"),
            "bad_field": refused(temperature=9),
            "bad_key": refused(api_key="sk-wrong"),
        }
    )


main()
