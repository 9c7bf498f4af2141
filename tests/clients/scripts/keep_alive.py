"""The number of pieces that clients of Python read from a stream with keep-alive comments between its events."""

from __future__ import annotations

import openai
from endpoint import API_KEY, BASE_URL, MODEL, report
from langchain_openai import OpenAI
from litellm import text_completion
from llama_index.llms.openai_like import OpenAILike

MAX_TOKENS = 4


def main() -> None:
    client = openai.OpenAI(base_url=BASE_URL, api_key=API_KEY)
    asked = {"prompt": "a", "max_tokens": MAX_TOKENS, "stream": True}
    lite = text_completion(model=f"text-completion-openai/{MODEL}", api_base=BASE_URL, api_key=API_KEY, **asked)
    chain = OpenAI(base_url=BASE_URL, api_key=API_KEY, model=MODEL, max_tokens=MAX_TOKENS)
    llama = OpenAILike(api_base=BASE_URL, api_key=API_KEY, model=MODEL, max_tokens=MAX_TOKENS, is_chat_model=False)
    report(
        {
            "litellm": "".join(chunk.choices[0].text or "" for chunk in lite),
            "openai": "".join(chunk.choices[0].text for chunk in client.completions.create(model=MODEL, **asked)),
            "langchain": "".join(chain.stream("a")),
            "llama_index": [*llama.stream_complete("a")][-1].text,
        }
    )


main()
