"""Clients of every kind. Each knows what its answer has to be, and says so when it is another."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

PROMPTS = ("Hello", "Once upon a time", "The capital of France is", "1 2 3", "hello world " * 100)
LONGEST = 400  # tokens
_PATH = "/openai/v1/completions"
_MOST_FINDINGS = 50


@dataclass
class Tally:
    """What has happened so far."""

    done: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    wrong: list[str] = field(default_factory=list)
    slowest_s: float = 0.0

    def is_wrong(self, kind: str, what: str) -> None:
        """Take note of an answer that is not what it has to be."""
        self.done["wrong"] += 1
        if len(self.wrong) < _MOST_FINDINGS:
            self.wrong.append(f"{kind}: {what}")


class Traffic:
    """Sends requests until told to stop. `is_scripted`: the executor's texts are one word per token."""

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
            (2, "refused", self._refused),
        )

    async def prepare(self) -> None:
        """Learn what each prompt's text is, from one request at a time."""
        for prompt in PROMPTS:
            answer = await self._post(prompt=prompt, max_tokens=LONGEST)
            self._references[prompt] = answer.json()["choices"][0]["text"]

    async def run(self) -> None:
        """Until `stop`; then every request under way is finished first."""
        await asyncio.gather(*(self._client() for _ in range(self._clients)))
        await self._http.aclose()

    def stop(self) -> None:
        """No more requests."""
        self._stopping.set()

    async def _client(self) -> None:
        weights = [weight for weight, _, _ in self._kinds]
        while not self._stopping.is_set():
            _, name, send = self._random.choices(self._kinds, weights)[0]
            started = time.monotonic()
            try:
                await send()
                self.tally.done[name] += 1
            except (httpx.HTTPError, KeyError, ValueError) as error:
                self.tally.is_wrong(name, repr(error))
            self.tally.slowest_s = max(self.tally.slowest_s, time.monotonic() - started)

    async def _post(self, headers: dict[str, str] | None = None, **body: Any) -> httpx.Response:
        return await self._http.post(_PATH, json=self._body(**body), headers=headers)

    def _body(self, **body: Any) -> dict[str, Any]:
        return {"model": self._model, "temperature": 0, **body}

    def _pick(self) -> tuple[str, int]:
        tokens = self._random.choice((1, 2, 5, 20, 60, 150, LONGEST))
        return self._random.choice(PROMPTS), tokens

    def _expected(self, prompt: str, tokens: int) -> str:
        """The text of so many tokens; for a model, which has tokens of all lengths, None of it is known exactly."""
        words = self._references[prompt].split(" ")
        return " ".join(words[: tokens + 1])  # the first is the nothing before the first space

    def _check(self, kind: str, prompt: str, tokens: int, text: str, finish_reason: str) -> None:
        self.tally.tokens += tokens
        is_right = text == self._expected(prompt, tokens) if self._is_scripted else self._is_prefix(prompt, text)
        if not is_right or (self._is_scripted and finish_reason != "length"):
            self.tally.is_wrong(kind, f"{finish_reason}, {len(text)} characters for {tokens} tokens of {prompt[:20]!r}")

    def _is_prefix(self, prompt: str, text: str) -> bool:
        return self._references[prompt].startswith(text)

    async def _stream(self) -> None:
        prompt, tokens = self._pick()
        text, reason, usage = "", "", 0
        body = self._body(prompt=prompt, max_tokens=tokens, stream=True, stream_options={"include_usage": True})
        async with self._http.stream("POST", _PATH, json=body) as answer:
            async for line in answer.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                event = json.loads(line[6:])
                for choice in event["choices"]:
                    text += choice["text"]
                    reason = choice["finish_reason"] or reason
                usage = (event["usage"] or {}).get("completion_tokens", 0)
        self._check("stream", prompt, tokens, text, reason)
        if self._is_scripted and usage != tokens:
            self.tally.is_wrong("stream", f"usage says {usage} tokens of {tokens}")

    async def _whole(self) -> None:
        prompt, tokens = self._pick()
        choices = self._random.choice((1, 1, 3))
        answer = (await self._post(prompt=prompt, max_tokens=tokens, n=choices)).json()
        for choice in answer["choices"]:
            self._check("whole", prompt, tokens, choice["text"], choice["finish_reason"])
        if self._is_scripted and answer["usage"]["completion_tokens"] != tokens * choices:
            self.tally.is_wrong("whole", f"usage {answer['usage']}")

    async def _list(self) -> None:
        _, tokens = self._pick()
        answer = (await self._post(prompt=list(PROMPTS), max_tokens=tokens)).json()
        for prompt, choice in zip(PROMPTS, answer["choices"], strict=True):
            self._check("list", prompt, tokens, choice["text"], choice["finish_reason"])

    async def _stop_string(self) -> None:
        prompt, whole = self._random.choice(PROMPTS), self._references
        place = self._random.randrange(len(whole[prompt]) // 2)
        stop = whole[prompt][place : place + self._random.randrange(2, 9)]
        answer = (await self._post(prompt=prompt, max_tokens=LONGEST, stop=[stop])).json()["choices"][0]
        expected = whole[prompt][: whole[prompt].index(stop)]
        if (answer["text"], answer["finish_reason"]) != (expected, "stop"):
            self.tally.is_wrong("stop string", f"{answer['finish_reason']} after {len(answer['text'])} characters")

    async def _cancel_stream(self) -> None:
        prompt = self._random.choice(PROMPTS)
        body = self._body(prompt=prompt, max_tokens=4000, stream=True)
        events = self._random.randrange(1, 40)
        async with self._http.stream("POST", _PATH, json=body) as answer:
            async for line in answer.aiter_lines():
                events -= line.startswith("data: {")
                if not events:
                    return

    async def _cancel_whole(self) -> None:
        try:
            await asyncio.wait_for(self._post(prompt="Hello", max_tokens=4000), self._random.uniform(0.01, 0.5))
        except asyncio.TimeoutError:
            return

    async def _deadline(self) -> None:
        answer = await self._post({"x-request-timeout-s": "0.2"}, prompt="Hello", max_tokens=4000)
        if answer.status_code != httpx.codes.GATEWAY_TIMEOUT:
            self.tally.is_wrong("deadline", f"status {answer.status_code}")

    async def _refused(self) -> None:
        cases = (
            ({"max_tokens": 0}, 400),
            ({"model": "nobody's"}, 404),
            ({"prompt": [10**7]}, 400),
            ({"top_p": 7}, 400),
        )
        changed, status = self._random.choice(cases)
        body: dict[str, Any] = {"prompt": "Hello", **changed}
        answer = await self._post(None, **body)
        if answer.status_code != status:
            self.tally.is_wrong("refused", f"status {answer.status_code} in place of {status}")
