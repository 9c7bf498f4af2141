"""litellm's completion() by its routes `openai/` and `hosted_vllm/`: streams, tools, structured output, errors."""

from __future__ import annotations

import asyncio
from importlib.metadata import version

import litellm
import openai
from endpoint import API_KEY, BASE_URL, MODEL, report
from weather import ASKED, MESSAGES, RESULT, Forecast, GetWeather

ACCESS = {"api_base": BASE_URL, "api_key": API_KEY, "temperature": 0}
ROUTES = ("openai", "hosted_vllm")


def refused(**changed: object) -> str | None:
    try:
        litellm.completion(**{**ACCESS, "model": f"openai/{MODEL}", "messages": MESSAGES, **changed})
    except openai.APIStatusError as error:  # what litellm's own classes extend
        return type(error).__name__
    return None


async def asynchronously(greedy: dict[str, object]) -> str:
    stream = await litellm.acompletion(**greedy, stream=True)
    return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])


def by_route(route: str) -> dict[str, object]:
    access = {**ACCESS, "model": f"{route}/{MODEL}"}
    greedy = {**access, "messages": MESSAGES, "max_tokens": 8}
    answer = litellm.completion(**greedy)
    stream = list(litellm.completion(**greedy, stream=True, stream_options={"include_usage": True}))
    asked = {**access, "messages": ASKED, "max_tokens": 200}
    with_tool = {**asked, "tools": [openai.pydantic_function_tool(GetWeather)], "tool_choice": "required"}
    with_tool["parallel_tool_calls"] = False
    called = litellm.completion(**with_tool).choices[0]
    (call,) = called.message.tool_calls
    streamed = litellm.stream_chunk_builder(list(litellm.completion(**with_tool, stream=True))).choices[0]
    result = {"role": "tool", "tool_call_id": call.id, "content": RESULT}
    history = {**with_tool, "messages": [*ASKED, called.message, result], "tool_choice": "none", "max_tokens": 8}
    parsed = litellm.completion(**asked, response_format=Forecast).choices[0].message.content
    return {
        "text": answer.choices[0].message.content,
        "usage": [answer.usage.total_tokens, stream[-1].usage.total_tokens],
        "streamed": "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices),
        "async_streamed": asyncio.run(asynchronously(greedy)),
        "name": call.function.name,
        "called": GetWeather.model_validate_json(call.function.arguments).model_dump(mode="json"),
        "streamed_call": [item.function.arguments for item in streamed.message.tool_calls] == [call.function.arguments],
        "finish_reasons": [called.finish_reason, streamed.finish_reason],
        "after_result": litellm.completion(**history).choices[0].message.content,
        "parsed": Forecast.model_validate_json(parsed).model_dump(mode="json"),
    }


def main() -> None:
    report(
        {
            "version": version("litellm"),
            "routes": {route: by_route(route) for route in ROUTES},
            "unknown_model": refused(model="openai/no-such-model"),
            "bad_role": refused(messages=[{"role": "robot", "content": "a"}]),
            "bad_key": refused(api_key="sk-wrong"),
        }
    )


main()
