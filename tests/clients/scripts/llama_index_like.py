"""llama-index's OpenAILike as a completion model: complete, stream, async, stop."""

from __future__ import annotations

import asyncio
from importlib.metadata import version

from endpoint import API_KEY, BASE_URL, MODEL, PROMPT, report
from llama_index.llms.openai_like import OpenAILike


def main() -> None:
    model = OpenAILike(
        api_base=BASE_URL, api_key=API_KEY, model=MODEL, is_chat_model=False, max_tokens=8, temperature=0
    )
    steps = list(model.stream_complete(PROMPT))
    report(
        {
            "version": version("llama-index-llms-openai-like"),
            "text": model.complete(PROMPT).text,
            "streamed": "".join(step.delta for step in steps),
            "whole_at_end": steps[-1].text,
            "async": asyncio.run(model.acomplete(PROMPT)).text,
            "stopped": model.complete(PROMPT, stop=["\n"]).text,
        }
    )


main()
