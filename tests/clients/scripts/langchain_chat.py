"""langchain-openai's ChatOpenAI: invoke, stream, bind_tools, with_structured_output by each of its methods."""

from __future__ import annotations

import asyncio
from importlib.metadata import version

from endpoint import API_KEY, BASE_URL, MODEL, report
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI
from weather import MESSAGES, QUESTION, RESULT, Forecast, GetWeather

ACCESS = {"base_url": BASE_URL, "api_key": API_KEY, "model": MODEL, "temperature": 0, "max_retries": 0}
METHODS = ("json_schema", "function_calling")


def added(chunks: list) -> object:
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    return whole


def tools(model: ChatOpenAI, short: ChatOpenAI) -> dict[str, object]:
    """Strict by name, and not strict; a call of either kind goes back with its result."""
    bound = model.bind_tools([GetWeather], tool_choice="GetWeather", strict=True)
    loose = model.bind_tools([GetWeather], tool_choice="any", parallel_tool_calls=False)
    asked = HumanMessage(QUESTION)
    answer = bound.invoke([asked])
    streamed = added(list(loose.stream([asked])))
    (call,) = answer.tool_calls
    answered = [asked, answer, ToolMessage(RESULT, tool_call_id=call["id"])]
    last = short.bind_tools([GetWeather], tool_choice="none")
    return {
        "name": call["name"],
        "parsed": GetWeather.model_validate(call["args"]).model_dump(mode="json"),
        "streamed": [piece["args"] for piece in streamed.tool_calls] == [call["args"]],
        "finish_reason": answer.response_metadata["finish_reason"],
        "after_result": last.invoke(answered).content,
        "after_streamed_call": last.invoke(
            [asked, streamed, ToolMessage(RESULT, tool_call_id=streamed.tool_calls[0]["id"])]
        ).content,
    }


def structured(model: ChatOpenAI, method: str) -> dict[str, object]:
    chain = model.with_structured_output(Forecast, method=method, strict=True)
    *_, last = chain.stream(QUESTION)
    return {"parsed": chain.invoke(QUESTION).model_dump(mode="json"), "streamed": last.model_dump(mode="json")}


def main() -> None:
    short, model = ChatOpenAI(**ACCESS, max_tokens=8), ChatOpenAI(**ACCESS, max_tokens=200)
    answer = short.invoke(MESSAGES)
    streamed = added(list(short.stream(MESSAGES, stream_usage=True)))
    report(
        {
            "version": version("langchain-openai"),
            "text": answer.content,
            "streamed": streamed.content,
            "async": asyncio.run(short.ainvoke(MESSAGES)).content,
            "batch": [message.content for message in short.batch([MESSAGES, MESSAGES])],
            "usage": [answer.usage_metadata["total_tokens"], streamed.usage_metadata["total_tokens"]],
            "tools": tools(model, short),
            "structured": {method: structured(model, method) for method in METHODS},
        }
    )


main()
