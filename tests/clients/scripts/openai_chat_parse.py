"""openai-python's parse() and stream() with Pydantic models and tools, and its calls sent back as history."""

from __future__ import annotations

import openai
from endpoint import API_KEY, BASE_URL, MODEL, report
from weather import ASKED, RESULT, Forecast, GetWeather

STRUCTURED = {"model": MODEL, "messages": ASKED, "max_completion_tokens": 200, "temperature": 0}
WITH_TOOL = {
    **STRUCTURED,
    "tools": [openai.pydantic_function_tool(GetWeather)],
    "tool_choice": "required",
    "parallel_tool_calls": False,
}


def structured(client: openai.OpenAI) -> dict[str, object]:
    """parse() sends Forecast as a strict schema with `$defs`, and makes a Forecast of the answer."""
    parsed = client.chat.completions.parse(**STRUCTURED, response_format=Forecast).choices[0].message.parsed
    with client.chat.completions.stream(**STRUCTURED, response_format=Forecast) as stream:
        events = list(stream)
        final = stream.get_final_completion().choices[0].message
    deltas = [event.delta for event in events if event.type == "content.delta"]
    return {
        "parsed": parsed.model_dump(mode="json"),
        "streamed": final.parsed.model_dump(mode="json"),
        "adds_up": "".join(deltas) == final.content,
        "pieces": len(deltas),
        "classes": [type(parsed).__name__, type(final.parsed).__name__],
    }


def tools(client: openai.OpenAI) -> dict[str, object]:
    choice = client.chat.completions.parse(**WITH_TOOL).choices[0]
    (call,) = choice.message.tool_calls
    with client.chat.completions.stream(**WITH_TOOL) as stream:
        events = list(stream)
        final = stream.get_final_completion().choices[0]
    (streamed,) = final.message.tool_calls
    done = [event for event in events if event.type == "tool_calls.function.arguments.done"]
    deltas = [event.arguments_delta for event in events if event.type == "tool_calls.function.arguments.delta"]
    named = {"type": "function", "function": {"name": "GetWeather"}}
    (of_named,) = client.chat.completions.parse(**{**WITH_TOOL, "tool_choice": named}).choices[0].message.tool_calls
    result = {"role": "tool", "tool_call_id": call.id, "content": RESULT}
    messages = [*ASKED, choice.message, result]  # the parsed message itself, with its content of null
    history = {**WITH_TOOL, "messages": messages, "tool_choice": "none", "max_completion_tokens": 8}
    return {
        "name": call.function.name,
        "content": choice.message.content,
        "finish_reasons": [choice.finish_reason, final.finish_reason],
        "parsed": call.function.parsed_arguments.model_dump(mode="json"),
        "named": of_named.function.parsed_arguments.model_dump(mode="json"),
        "streamed": streamed.function.parsed_arguments.model_dump(mode="json"),
        "done": [(event.name, event.parsed_arguments.model_dump(mode="json")) for event in done],
        "adds_up": "".join(deltas) == streamed.function.arguments,
        "pieces": len(deltas),
        "ids_differ": call.id != streamed.id,
        "answer": client.chat.completions.create(**history).choices[0].message.content,
        "answer_streamed": text_of(list(client.chat.completions.create(**history, stream=True))),
    }


def text_of(chunks: list) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def main() -> None:
    client = openai.OpenAI(base_url=BASE_URL, api_key=API_KEY, max_retries=0)
    report({"version": openai.__version__, "structured": structured(client), "tools": tools(client)})


main()
