"""The request of `vllm bench serve --backend openai` and its reader of the response, over aiohttp as in the original.

vllm itself is too large to install here. Written after vllm/benchmarks/lib/endpoint_request_func.py of
vllm-project/vllm at 02cfb534 (async_request_openai_completions): the fields and defaults, the headers, and its reader:
a stream cut anywhere, whose events end with a blank line; the first event with `choices` is the first token,
the one with `usage` and no choices has the counts.
"""

from __future__ import annotations

import asyncio
import json
import time

import aiohttp
from endpoint import API_KEY, BASE_URL, MODEL, report

PROMPTS = ["Once upon a time", "The sea is", "1, 2, 3,", "My name is"]
OUTPUT_TOKENS = 8


async def request(session: aiohttp.ClientSession, number: int, prompt: str) -> dict[str, object]:
    body = {
        "model": MODEL,
        "prompt": prompt,
        "repetition_penalty": 1.0,
        "max_tokens": OUTPUT_TOKENS,
        "logprobs": None,
        "stream": True,
        "stream_options": {"include_usage": True},
        "ignore_eos": True,
    }
    headers = {"Authorization": f"Bearer {API_KEY}", "x-request-id": f"bench-{number}"}
    text, usage, arrivals, pending = "", {}, [time.perf_counter()], b""
    async with session.post(f"{BASE_URL}/completions", json=body, headers=headers) as answer:
        async for piece in answer.content.iter_any():
            *events, pending = (pending + piece).split(b"\n\n")
            for event in events:
                if event.startswith(b":") or event == b"data: [DONE]":
                    continue
                data = json.loads(event.removeprefix(b"data: "))
                if data.get("choices"):
                    arrivals.append(time.perf_counter())
                    text += data["choices"][0]["text"]
                elif data.get("usage"):
                    usage = data["usage"]
    return {
        "status": answer.status,
        "request_id": answer.headers.get("x-request-id"),
        "text": text,
        "usage": usage,
        "has_first_token": len(arrivals) > 1,
        "left_over": pending.decode(),
    }


async def main() -> None:
    async with aiohttp.ClientSession(trust_env=True) as session:
        found = await asyncio.gather(*(request(session, number, prompt) for number, prompt in enumerate(PROMPTS)))
    report({"answers": found})


asyncio.run(main())
