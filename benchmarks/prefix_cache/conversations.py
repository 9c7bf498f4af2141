"""Conversations as load: each turn sends the whole conversation so far, and waits for its answer and some time."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass

import httpx
import orjson
from httpx_sse import aconnect_sse

_TIMEOUT_S = 300
_DONE = "[DONE]"
_WORDS = [
    *("river", "stone", "engine", "garden", "letter", "window", "music", "winter", "table", "silver", "market"),
    *("forest", "bridge", "story", "yellow", "paper", "coffee", "morning", "island", "doctor", "summer", "animal"),
    *("travel", "pocket", "mirror", "number", "question", "answer", "teacher", "village", "ocean", "kitchen"),
]


@dataclass(frozen=True)
class Conversations:
    """How many there are, and their lengths in words. Conversations with the same system prompt begin equally."""

    count: int
    turns: int
    system_prompts: int
    system_words: int
    turn_words: int
    answer_tokens: int
    think_s: float  # mean time between an answer and the next turn


@dataclass(frozen=True)
class Turn:
    """The result of one turn: which one of its conversation, from 0, and the time to its first token."""

    number: int
    first_token_s: float


async def run(base_url: str, api_key: str, model: str, load: Conversations, seed: int) -> list[Turn]:
    """Runs all conversations side by side. The same seed gives the same texts and times, up to the answers.

    Raises httpx.HTTPError if a turn fails.
    """
    async with httpx.AsyncClient(
        base_url=base_url, headers={"Authorization": f"Bearer {api_key}"}, timeout=_TIMEOUT_S, trust_env=False
    ) as client:
        texts = [_words(random.Random(f"{seed} system {n}"), load.system_words) for n in range(load.system_prompts)]
        conversations = (
            _converse(client, model, load, texts[number % len(texts)], random.Random(f"{seed} {number}"))
            for number in range(load.count)
        )
        return [turn for turns in await asyncio.gather(*conversations) for turn in turns]


async def _converse(
    client: httpx.AsyncClient, model: str, load: Conversations, text: str, source: random.Random
) -> list[Turn]:
    turns = []
    await asyncio.sleep(source.uniform(0, load.think_s))
    for number in range(load.turns):
        text += f"\n\nUser: {_words(source, load.turn_words)}\n\nAssistant:"
        body = {"model": model, "prompt": text, "max_tokens": load.answer_tokens, "temperature": 0, "stream": True}
        answer, first_token_s = await _stream(client, {**body, "ignore_eos": True})
        turns.append(Turn(number, first_token_s))
        text += answer
        await asyncio.sleep(source.uniform(0, 2 * load.think_s))
    return turns


async def _stream(client: httpx.AsyncClient, body: dict[str, object]) -> tuple[str, float]:
    """Returns the answer and the seconds to its first event."""
    started, first_s, parts = time.monotonic(), 0.0, []
    async with aconnect_sse(client, "POST", "/v1/completions", json=body) as source:
        source.response.raise_for_status()
        async for event in source.aiter_sse():
            if event.data == _DONE:
                break
            first_s = first_s or time.monotonic() - started
            parts.append(orjson.loads(event.data)["choices"][0]["text"])
    return "".join(parts), first_s


def _words(source: random.Random, count: int) -> str:
    return " ".join(source.choices(_WORDS, k=count))
