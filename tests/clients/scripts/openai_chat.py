"""openai-python's chat: whole, streams, parse() and stream() with Pydantic models, tools, and calls as history."""

from __future__ import annotations

import asyncio

import openai
from endpoint import API_KEY, BASE_URL, MODEL, report
from weather import ASKED, MESSAGES, RESULT, Forecast, GetWeather

ACCESS = {"base_url": BASE_URL, "api_key": API_KEY, "max_retries": 0}
GREEDY = {"model": MODEL, "messages": MESSAGES, "max_completion_tokens": 8, "temperature": 0}
STRUCTURED = {"model": MODEL, "messages": ASKED, "max_completion_tokens": 200, "temperature": 0}
WITH_TOOL = {
    **STRUCTURED,
    "tools": [openai.pydantic_function_tool(GetWeather)],
    "tool_choice": "required",
    "parallel_tool_calls": False,
}


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
            "structured": structured(client),
            "tools": tools(client),
            "async": asyncio.run(asynchronously()),
            "bad_role": refused(client, messages=[{"role": "robot", "content": "a"}]),
            "bad_tool": refused(client, tools=[{"type": "function", "function": {"name": "a b"}}]),
            "unknown_model": refused(client, model="no-such-model"),
        }
    )


main()
