"""Concurrent clients that send every kind of request and check each response."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import httpx
import orjson
from httpx_sse import EventSource, SSEError

PROMPTS = ("Hello", "Once upon a time", "The capital of France is", "1 2 3", "hello world " * 100)
MAX_TOKENS = 400
_PATH = "/openai/v1/completions"
_MAX_FINDINGS = 50


@dataclass
class Tally:
    """Counters of the requests so far, by kind."""

    done: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    wrong: list[str] = field(default_factory=list)
    slowest_s: float = 0.0

    def record_wrong(self, kind: str, description: str) -> None:
        """Counts a wrong response and keeps the first descriptions."""
        self.done["wrong"] += 1
        if len(self.wrong) < _MAX_FINDINGS:
            self.wrong.append(f"{kind}: {description}")


class Traffic:
    """Sends requests until `stop`. `is_scripted`: the executor generates one word per token."""

    def __init__(self, base_url: str, key: str, model: str, *, is_scripted: bool, clients: int, seed: int) -> None:
        self.tally = Tally()
        self._model = model
        self._is_scripted = is_scripted
        self._clients = clients
        self._random = random.Random(seed)
        self._stopping = asyncio.Event()
        self._references: dict[str, str] = {}
        self._http = httpx.AsyncClient(
            base_url=base_url,
            headers={"Authorization": f"Bearer {key}"},
            timeout=60,
            trust_env=False,
            limits=httpx.Limits(max_connections=2 * clients, max_keepalive_connections=clients),
        )
        self._kinds: Sequence[tuple[int, str, Callable[[], Awaitable[None]]]] = (
            (6, "stream", self._stream),
            (4, "whole", self._whole),
            (2, "list", self._list),
            (3, "stop string", self._stop_string),
            (3, "cancelled stream", self._cancel_stream),
            (2, "cancelled whole", self._cancel_whole),
            (1, "deadline", self._deadline),
            (2, "rejected", self._rejected),
        )

    async def prepare(self) -> None:
        """Requests the text of each prompt, one at a time, as the reference."""
        for prompt in PROMPTS:
            response = await self._post(prompt=prompt, max_tokens=MAX_TOKENS)
            self._references[prompt] = response.json()["choices"][0]["text"]

    async def run(self) -> None:
        """Sends requests until `stop`, and then finishes those in flight."""
        await asyncio.gather(*(self._client() for _ in range(self._clients)))
        await self._http.aclose()

    def stop(self) -> None:
        """Ends the traffic: no further requests are sent."""
        self._stopping.set()

    async def _client(self) -> None:
        weights = [weight for weight, _, _ in self._kinds]
        while not self._stopping.is_set():
            _, name, send = self._random.choices(self._kinds, weights)[0]
            started = time.monotonic()
            try:
                await send()
                self.tally.done[name] += 1
            except (httpx.HTTPError, SSEError, KeyError, ValueError) as error:
                self.tally.record_wrong(name, repr(error))
            self.tally.slowest_s = max(self.tally.slowest_s, time.monotonic() - started)

    async def _post(self, headers: dict[str, str] | None = None, **body: Any) -> httpx.Response:
        return await self._http.post(_PATH, json=self._body(**body), headers=headers)

    def _body(self, **body: Any) -> dict[str, Any]:
        return {"model": self._model, "temperature": 0, **body}

    def _pick(self) -> tuple[str, int]:
        tokens = self._random.choice((1, 2, 5, 20, 60, 150, MAX_TOKENS))
        return self._random.choice(PROMPTS), tokens

    def _expected(self, prompt: str, tokens: int) -> str:
        """Returns the text of a number of scripted tokens, which are one word each."""
        words = self._references[prompt].split(" ")
        return " ".join(words[: tokens + 1])  # the text begins with a space, so the first word is empty

    def _check(self, kind: str, prompt: str, tokens: int, text: str, finish_reason: str) -> None:
        self.tally.tokens += tokens
        is_correct = text == self._expected(prompt, tokens) if self._is_scripted else self._is_prefix(prompt, text)
        if not is_correct or (self._is_scripted and finish_reason != "length"):
            self.tally.record_wrong(
                kind, f"{finish_reason}, {len(text)} characters for {tokens} tokens of {prompt[:20]!r}"
            )

    def _is_prefix(self, prompt: str, text: str) -> bool:
        return self._references[prompt].startswith(text)

    async def _stream(self) -> None:
        prompt, tokens = self._pick()
        text, reason, usage = "", "", 0
        body = self._body(prompt=prompt, max_tokens=tokens, stream=True, stream_options={"include_usage": True})
        async with aclosing(self._chunks(body)) as chunks:
            async for chunk in chunks:
                for choice in chunk["choices"]:
                    text += choice["text"]
                    reason = choice["finish_reason"] or reason
                usage = (chunk["usage"] or {}).get("completion_tokens", 0)
        self._check("stream", prompt, tokens, text, reason)
        if self._is_scripted and usage != tokens:
            self.tally.record_wrong("stream", f"usage reports {usage} of {tokens} tokens")

    async def _chunks(self, body: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """Sends a streaming request and yields the JSON of its events before [DONE]. Closing it disconnects."""
        async with (
            self._http.stream("POST", _PATH, json=body) as response,
            aclosing(EventSource(response).aiter_sse()) as events,
        ):
            async for event in events:
                if event.data != "[DONE]":
                    yield orjson.loads(event.data)

    async def _whole(self) -> None:
        prompt, tokens = self._pick()
        choices = self._random.choice((1, 1, 3))
        response = (await self._post(prompt=prompt, max_tokens=tokens, n=choices)).json()
        for choice in response["choices"]:
            self._check("whole", prompt, tokens, choice["text"], choice["finish_reason"])
        if self._is_scripted and response["usage"]["completion_tokens"] != tokens * choices:
            self.tally.record_wrong("whole", f"usage {response['usage']}")

    async def _list(self) -> None:
        _, tokens = self._pick()
        response = (await self._post(prompt=list(PROMPTS), max_tokens=tokens)).json()
        for prompt, choice in zip(PROMPTS, response["choices"], strict=True):
            self._check("list", prompt, tokens, choice["text"], choice["finish_reason"])

    async def _stop_string(self) -> None:
        prompt, whole = self._random.choice(PROMPTS), self._references
        start = self._random.randrange(len(whole[prompt]) // 2)
        stop = whole[prompt][start : start + self._random.randrange(2, 9)]
        response = (await self._post(prompt=prompt, max_tokens=MAX_TOKENS, stop=[stop])).json()["choices"][0]
        expected = whole[prompt][: whole[prompt].index(stop)]
        if (response["text"], response["finish_reason"]) != (expected, "stop"):
            self.tally.record_wrong(
                "stop string", f"{response['finish_reason']} after {len(response['text'])} characters"
            )

    async def _cancel_stream(self) -> None:
        prompt = self._random.choice(PROMPTS)
        body = self._body(prompt=prompt, max_tokens=4000, stream=True)
        remaining = self._random.randrange(1, 40)
        async with aclosing(self._chunks(body)) as chunks:
            async for _chunk in chunks:
                remaining -= 1
                if not remaining:
                    return

    async def _cancel_whole(self) -> None:
        try:
            await asyncio.wait_for(self._post(prompt="Hello", max_tokens=4000), self._random.uniform(0.01, 0.5))
        except asyncio.TimeoutError:
            return

    async def _deadline(self) -> None:
        response = await self._post({"x-request-timeout-s": "0.2"}, prompt="Hello", max_tokens=4000)
        if response.status_code != httpx.codes.GATEWAY_TIMEOUT:
            self.tally.record_wrong("deadline", f"status {response.status_code}")

    async def _rejected(self) -> None:
        cases = (
            ({"max_tokens": 0}, 400),
            ({"model": "no-such-model"}, 404),
            ({"prompt": [10**7]}, 400),
            ({"top_p": 7}, 400),
        )
        changed, status = self._random.choice(cases)
        body: dict[str, Any] = {"prompt": "Hello", **changed}
        response = await self._post(None, **body)
        if response.status_code != status:
            self.tally.record_wrong("rejected", f"status {response.status_code}, expected {status}")
