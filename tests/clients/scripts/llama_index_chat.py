"""llama-index's OpenAILike as a chat model: chat, stream, async, function calls, structured output."""

from __future__ import annotations

import asyncio
from importlib.metadata import version

from endpoint import API_KEY, BASE_URL, MODEL, report
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from weather import MESSAGES, QUESTION, RESULT, Forecast, GetWeather

ACCESS = {"api_base": BASE_URL, "api_key": API_KEY, "model": MODEL, "temperature": 0, "is_chat_model": True}


def get_weather(**_: object) -> str:
    return RESULT


def tools(model: OpenAILike, short: OpenAILike) -> dict[str, object]:
    tool = FunctionTool.from_defaults(get_weather, name="GetWeather", fn_schema=GetWeather)
    asked = {"tools": [tool], "user_msg": QUESTION, "tool_required": True}
    answer = model.chat_with_tools(**asked)
    (call,) = model.get_tool_calls_from_response(answer)
    *_, last = model.stream_chat_with_tools(**asked)
    (streamed,) = model.get_tool_calls_from_response(last)
    history = [
        ChatMessage(role="user", content=QUESTION),
        answer.message,
        ChatMessage(role="tool", content=RESULT, additional_kwargs={"tool_call_id": call.tool_id}),
    ]
    return {
        "name": call.tool_name,
        "parsed": GetWeather.model_validate(call.tool_kwargs).model_dump(mode="json"),
        "streamed": streamed.tool_kwargs == call.tool_kwargs,
        "after_result": short.chat(history).message.content,
    }


def main() -> None:
    short = OpenAILike(**ACCESS, max_tokens=8)
    model = OpenAILike(**ACCESS, max_tokens=200, is_function_calling_model=True, should_use_structured_outputs=True)
    messages = [ChatMessage(**message) for message in MESSAGES]
    steps = list(short.stream_chat(messages))
    structured = model.as_structured_llm(Forecast)
    report(
        {
            "version": version("llama-index-llms-openai-like"),
            "text": short.chat(messages).message.content,
            "streamed": "".join(step.delta or "" for step in steps),
            "whole_at_end": steps[-1].message.content,
            "async": asyncio.run(short.achat(messages)).message.content,
            "tools": tools(model, short),
            "parsed": structured.chat([ChatMessage(role="user", content=QUESTION)]).raw.model_dump(mode="json"),
        }
    )


main()
