"""Random guides of one sort: each gets a completion or a 400 in the form of the API's errors."""

from __future__ import annotations

import asyncio
import json
import os
from typing import Any

import orjson

from benchmarks.siege.attacks.attack import HUNG_UP, Attack, Load, counted
from benchmarks.siege.guides.random_guides import random_fields
from benchmarks.siege.target import FIFTY
from benchmarks.siege.wire import Answer, ask

_RETRIES = 100
_MOST_RETRY_S = 5.0


class RandomGuides(Attack):
    """Sends a number of random guides, some at a time, and ends when each has its response."""

    allowed = frozenset({"200", "400", HUNG_UP})
    patience_s = 90.0
    grace_s = 5.0
    clients = max(4, os.cpu_count() or 1)

    def __init__(self, sort: str, count: int, seed: int) -> None:
        """Equal arguments give equal guides."""
        self.name = f"random {sort}"
        self.line = f"{count:,} random {sort}"
        self._sort = sort
        self._seed = seed
        self._left = iter(range(count))

    async def run(self, load: Load) -> None:
        """Sends all guides, or those that there is time for."""
        await asyncio.gather(*(self._send_rest(load) for _ in range(self.clients)))

    async def _send_rest(self, load: Load) -> None:
        for number in self._left:  # one iterator for all clients
            if load.stopping.is_set():
                return
            await counted(load, self._send(load, number), self.patience_s)

    async def _send(self, load: Load, number: int) -> None:
        fields = random_fields(self._sort, self._seed, number)
        request = guided_request(load, fields, FIFTY[number % len(FIFTY)])
        answer = await ask(load.target, request)
        for _ in range(_RETRIES):
            if answer.status not in (429, 503):
                break
            await load.rest(min(float(answer.headers.get("retry-after", "1")), _MOST_RETRY_S))
            answer = await ask(load.target, request)
        load.tally.count(
            answer.outcome if is_well_formed(answer) else f"malformed {answer.status}",
            "" if answer.status == 200 else f"number {number} of seed {self._seed}: {answer.body[:200]!r}",
        )


def guided_request(load: Load, fields: dict[str, Any], key: str) -> bytes:
    """Returns a short guided request. Integers beyond 64 bits are legal JSON, which orjson does not write."""
    body = {"model": load.target.model, "prompt": "Answer: ", "max_tokens": 6, **fields}
    content = json.dumps(body, ensure_ascii=False).encode(errors="surrogatepass")
    return load.target.head(key, len(content)) + content


def is_well_formed(answer: Answer) -> bool:
    """Whether this is a completion, or an error with message and code as the API documents them."""
    try:
        document: Any = orjson.loads(answer.body)
        if answer.status == 200:
            return isinstance(document["choices"][0]["text"], str)
        error = document["error"]
        return isinstance(error["message"], str) and bool(error["message"]) and isinstance(error["code"], str)
    except (orjson.JSONDecodeError, LookupError, TypeError):
        return False
