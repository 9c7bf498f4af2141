"""litellm's completion() by its routes `openai/` and `hosted_vllm/`: streams, tools, structured output, errors."""

from __future__ import annotations

import asyncio
from importlib.metadata import version

import litellm
import openai
from endpoint import API_KEY, BASE_URL, MODEL, report
from weather import ASKED, MESSAGES, RESULT, Forecast, GetWeather

ACCESS = {"api_base": BASE_URL, "api_key": API_KEY, "temperature": 0}
ASKED_FOR = {"messages": ASKED, "max_tokens": 200}
WITH_TOOL = {
    **ASKED_FOR,
    "tools": [openai.pydantic_function_tool(GetWeather)],
    "tool_choice": "required",
    "parallel_tool_calls": False,
}
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
    with_tool = {**access, **WITH_TOOL}
    called = litellm.completion(**with_tool).choices[0]
    (call,) = called.message.tool_calls
    result = {"role": "tool", "tool_call_id": call.id, "content": RESULT}
    history = {**with_tool, "messages": [*ASKED, called.message, result], "tool_choice": "none", "max_tokens": 8}
    return {
        "text": answer.choices[0].message.content,
        "usage": [answer.usage.total_tokens, stream[-1].usage.total_tokens],
        "streamed": "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices),
        "async_streamed": asyncio.run(asynchronously(greedy)),
        "name": call.function.name,
        "called": GetWeather.model_validate_json(call.function.arguments).model_dump(mode="json"),
        "arguments": call.function.arguments,
        "finish_reason": called.finish_reason,
        "after_result": litellm.completion(**history).choices[0].message.content,
    }


def main() -> None:
    access = {**ACCESS, "model": f"openai/{MODEL}"}
    routes = {route: by_route(route) for route in ROUTES}
    chunks = list(litellm.completion(**access, **WITH_TOOL, stream=True))
    (streamed,) = litellm.stream_chunk_builder(chunks).choices[0].message.tool_calls
    parsed = litellm.completion(**access, **ASKED_FOR, response_format=Forecast).choices[0].message.content
    report(
        {
            "version": version("litellm"),
            "routes": routes,
            "streamed_call": streamed.function.arguments == routes["openai"]["arguments"],
            "parsed": Forecast.model_validate_json(parsed).model_dump(mode="json"),
            "unknown_model": refused(model="openai/no-such-model"),
            "bad_role": refused(messages=[{"role": "robot", "content": "a"}]),
            "bad_key": refused(api_key="sk-wrong"),
        }
    )


main()
