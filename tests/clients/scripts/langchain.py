"""langchain-openai's completion class: invoke, batch in one request, stream, async, stop."""

from __future__ import annotations

import asyncio
from importlib.metadata import version

from endpoint import API_KEY, BASE_URL, MODEL, PROMPT, report
from langchain_openai import OpenAI


def main() -> None:
    model = OpenAI(base_url=BASE_URL, api_key=API_KEY, model=MODEL, max_tokens=8, temperature=0)
    generated = model.generate([PROMPT, "Once upon a time"])
    report(
        {
            "version": version("langchain-openai"),
            "text": model.invoke(PROMPT),
            "streamed": "".join(model.stream(PROMPT)),
            "async": asyncio.run(model.ainvoke(PROMPT)),
            "batch": [item[0].text for item in generated.generations],
            "usage": generated.llm_output["token_usage"],
            "stopped": model.invoke(PROMPT, stop=["\n"]),
        }
    )


main()
