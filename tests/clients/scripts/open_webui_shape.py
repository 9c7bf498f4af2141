"""The requests of Open WebUI's backend and its way to read a stream, over aiohttp as in the original.

open-webui itself is too large to install here: 262 packages, with torch and CUDA's libraries. Written after the package
open-webui 0.12.4: `send_get_request` and `generate_chat_completion` of open_webui/routers/openai.py (headers, what is
in a body), `stream_chunks_handler` and `convert_output_to_messages` of utils/misc.py (lines; calls as history),
the loop over lines of utils/middleware.py, and routers/tasks.py (title, tags, follow-ups: not streamed, 1000 tokens,
without a response format; what is between the first `{` and the last `}` is parsed).
"""

from __future__ import annotations

import asyncio
import json

import aiohttp
from endpoint import API_KEY, BASE_URL, MODEL, report

HEADERS = {"Content-Type": "application/json", "Authorization": f"Bearer {API_KEY}"}
SYSTEM = {"role": "system", "content": "You are terse."}
ASKED = {"role": "user", "content": "What is the weather in Paris?"}
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string", "description": "A city", "enum": ["Paris", "Rome", "Oslo"]}},
    "required": ["city"],
}
TOOLS = [{"type": "function", "function": {"name": "get_weather", "description": "Now", "parameters": PARAMETERS}}]
PARAMS = {"temperature": 0.0, "top_p": 1.0, "min_p": 0.0, "frequency_penalty": 0.0, "seed": 7, "stop": ["\n\n"]}
TASKS = {
    "title": ('{ "title": "your concise title here" }', "title", "Paris Weather"),
    "tags": ('{ "tags": ["tag1", "tag2", "tag3"] }', "tags", ["Weather", "Travel"]),
    "follow_ups": ('{ "follow_ups": ["Suggested next message 1"] }', "follow_ups", ["Will it rain?"]),
}


async def streamed(session: aiohttp.ClientSession, **body: object) -> dict[str, object]:
    """What the middleware keeps of a stream: text, calls by index with their arguments added up, usage, errors."""
    found: dict[str, object] = {"text": "", "usage": {}, "finish_reason": None, "errors": []}
    calls: dict[int, dict[str, object]] = {}
    fields = {"model": MODEL, "stream": True, "stream_options": {"include_usage": True}, "max_tokens": 60, **body}
    async with session.post(f"{BASE_URL}/chat/completions", data=json.dumps(fields), headers=HEADERS) as answer:
        found["status"] = answer.status
        async for line in answer.content:
            if not line.startswith(b"data:") or line[5:].strip() == b"[DONE]":
                continue
            data = json.loads(line[5:].strip())
            found["usage"] = data.get("usage") or found["usage"]
            if not data.get("choices"):
                found["errors"] += [data["error"]] if data.get("error") else []
                continue
            choice = data["choices"][0]
            found["finish_reason"] = choice.get("finish_reason") or found["finish_reason"]
            delta = choice.get("delta", {})
            found["text"] += delta.get("content") or ""
            for call in delta.get("tool_calls") or []:
                if call["index"] in calls:
                    calls[call["index"]]["function"]["arguments"] += call["function"]["arguments"]
                else:
                    call["function"].setdefault("arguments", "")
                    calls[call["index"]] = call
    return {**found, "calls": list(calls.values())}


async def whole(session: aiohttp.ClientSession, **body: object) -> dict[str, object]:
    fields = {"model": MODEL, "stream": False, **body}
    async with session.post(f"{BASE_URL}/chat/completions", data=json.dumps(fields), headers=HEADERS) as answer:
        return {"status": answer.status, **await answer.json()}


async def task(session: aiohttp.ClientSession, form: str, key: str, expected: object) -> object:
    """A task of the background, with a response format of the operator: without one, JSON is only hoped for."""
    prompt = f"### Task:\nDescribe the chat.\n### Output:\nJSON format: {form}\n### Chat History:\n{ASKED['content']}"
    schema = {"type": "object", "properties": {key: {"const": expected}}, "required": [key]}
    answer = await whole(
        session,
        messages=[{"role": "user", "content": prompt}],
        max_tokens=1000,
        response_format={"type": "json_schema", "json_schema": {"name": key, "schema": schema}},
    )
    text = answer["choices"][0]["message"]["content"]
    return json.loads(text[text.find("{") : text.rfind("}") + 1])[key]


async def with_tools(session: aiohttp.ClientSession) -> dict[str, object]:
    """A call is forced by the model's parameters, where Open WebUI leaves it to the model; the result is sent back."""
    forced = await streamed(session, **PARAMS, messages=[SYSTEM, ASKED], tools=TOOLS, tool_choice="required")
    results = [{"role": "tool", "tool_call_id": call["id"], "content": "12 degrees"} for call in forced["calls"]]
    kept = [{"id": call["id"], "type": "function", "function": call["function"]} for call in forced["calls"]]
    history = [SYSTEM, ASKED, {"role": "assistant", "content": "", "tool_calls": kept}, *results]
    body = {**PARAMS, "messages": history, "tools": TOOLS, "tool_choice": "none", "max_tokens": 8}
    after = await whole(session, **body)
    return {
        "calls": [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in forced["calls"]],
        "finish_reason": forced["finish_reason"],
        "after": after["choices"][0]["message"]["content"],
        "after_streamed": (await streamed(session, **body))["text"],
    }


async def main() -> None:
    async with aiohttp.ClientSession(trust_env=True) as session:
        async with session.get(f"{BASE_URL}/models", headers=HEADERS) as answer:
            models = [model["id"] for model in (await answer.json())["data"]]
        question = {"role": "user", "content": "What is the capital of France?"}
        parts = {"role": "user", "content": [{"type": "text", "text": question["content"]}]}
        chat = await streamed(session, **PARAMS, messages=[question], max_tokens=8)
        of_parts = await streamed(session, **PARAMS, messages=[parts], max_tokens=8)
        # "Continue" sends the conversation with the unfinished answer as its end.
        cut = {"role": "assistant", "content": "The capital"}
        continued = await streamed(session, **PARAMS, messages=[question, cut], max_tokens=4)
        report(
            {
                "models": models,
                "chat": chat,
                "of_parts": of_parts["text"],
                "continued": [continued["status"], continued["errors"]],
                "tools": await with_tools(session),
                "tasks": {name: await task(session, *expected) for name, expected in TASKS.items()},
                "expected": {name: expected for name, (_, _, expected) in TASKS.items()},
            }
        )


asyncio.run(main())
