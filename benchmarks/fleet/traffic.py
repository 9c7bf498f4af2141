"""Clients that stream completions over kept connections, retry as OpenAI's client does, and check every character.

OpenAI's client retries twice: after a connection error, and after 408, 409, 429 and 5xx, with the delay in the
response. A stream that has begun is not retried by any client; here it is sent again as a new request, to see that this
works.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

import httpx
import orjson

from benchmarks.fleet.texts import Task

MAX_RETRIES = 2
_RETRY_DELAY_S = 0.5  # of OpenAI's client without a header
_TIMEOUT = httpx.Timeout(120.0, connect=5.0)
_IDLE_S = 0.05
_JOIN_TIMEOUT_S = 180.0
_RETRIED = frozenset({408, 409, 429})


class Outcome(Enum):
    """How an attempt ended."""

    WHOLE = "whole"
    REFUSED = "refused"  # an HTTP status
    NOT_CONNECTED = "not connected"  # no response
    CUT = "cut"  # the connection broke in the middle of the stream
    FAILED = "failed"  # an error event in the stream
    WRONG = "wrong"  # another text than the expected one


BROKEN = (Outcome.CUT, Outcome.FAILED)


@dataclass
class Sample:
    """One request with its retries. Times are monotonic seconds."""

    started_s: float
    route: str
    tokens: int
    outcome: Outcome = Outcome.NOT_CONNECTED  # of the last attempt
    ended_s: float = 0.0
    first_token_s: float | None = None  # after the start of the last attempt
    fingerprint: str | None = None
    problems: list[str] = field(default_factory=list)  # of the attempts that failed
    is_mended: bool | None = None  # whether a new request succeeded after a stream had broken; None: not known yet


@dataclass
class _Attempt:
    outcome: Outcome
    problem: str = ""
    retry_after_s: float | None = None
    first_token_s: float | None = None
    fingerprint: str | None = None
    status: int = 0


class Traffic:
    """Clients in a thread of their own. `urls` has the base URL of each route; clients take them in turn."""

    def __init__(self, urls: Mapping[str, str], model: str, seed: int = 1) -> None:
        self.samples: list[Sample] = []
        self._urls = list(urls.items())
        self._model = model
        self._random = random.Random(seed)
        self._wished: list[Sequence[Task]] = []  # of each client
        self._closing = threading.Event()
        self._in_flight = 0
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="traffic", daemon=True)

    @property
    def in_flight(self) -> int:
        """Requests that have been sent and have not ended."""
        return self._in_flight

    def start(self) -> None:
        """Starts without a client."""
        self._thread.start()

    def set_clients(self, groups: Sequence[tuple[int, Sequence[Task]]]) -> None:
        """Runs that many clients of each group, with its tasks. Surplus clients finish their request."""
        self._wished = [tasks for count, tasks in groups for _ in range(count)]

    def close(self) -> None:
        """Ends all clients after their current request."""
        self._wished = []
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(_JOIN_TIMEOUT_S)

    async def _run(self) -> None:
        clients: list[asyncio.Task[None]] = []
        while not self._closing.is_set():
            while len(clients) < len(self._wished):
                clients.append(asyncio.create_task(self._client(len(clients))))
            await asyncio.sleep(_IDLE_S)
            for client in clients:
                if client.done():
                    client.result()
        await asyncio.gather(*clients)

    async def _client(self, number: int) -> None:
        route, url = self._urls[number % len(self._urls)]
        async with httpx.AsyncClient(base_url=url, timeout=_TIMEOUT, trust_env=False, verify=False) as http:
            while not self._closing.is_set():
                wished = self._wished
                if number >= len(wished):
                    await asyncio.sleep(_IDLE_S)
                    continue
                task = self._random.choice(wished[number])
                self._in_flight += 1
                try:
                    sample = await self._request(http, route, task)
                    self.samples.append(sample)  # now: a new request may end in a later phase
                    if sample.outcome in BROKEN:
                        again = await self._request(http, route, task)
                        sample.is_mended = again.outcome is Outcome.WHOLE
                finally:
                    self._in_flight -= 1

    async def _request(self, http: httpx.AsyncClient, route: str, task: Task) -> Sample:
        sample = Sample(time.monotonic(), route, task.max_tokens)
        attempt = await self._attempt(http, task)
        for _ in range(MAX_RETRIES):
            if attempt.outcome not in (Outcome.REFUSED, Outcome.NOT_CONNECTED) or not _is_retried(attempt.status):
                break
            sample.problems.append(attempt.problem)
            await asyncio.sleep(_RETRY_DELAY_S if attempt.retry_after_s is None else attempt.retry_after_s)
            attempt = await self._attempt(http, task)
        sample.ended_s = time.monotonic()
        sample.outcome, sample.first_token_s = attempt.outcome, attempt.first_token_s
        sample.fingerprint = attempt.fingerprint
        if attempt.outcome is not Outcome.WHOLE:
            sample.problems.append(attempt.problem)
        return sample

    async def _attempt(self, http: httpx.AsyncClient, task: Task) -> _Attempt:
        body = {
            "model": self._model,
            "prompt": task.prompt,
            "max_tokens": task.max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        started_s = time.monotonic()
        has_head = False
        try:
            async with http.stream("POST", "/v1/completions", json=body) as response:
                if response.status_code != httpx.codes.OK:
                    return _refused(response, await response.aread())
                has_head = True
                return await _read_stream(response, task, started_s)
        except httpx.TransportError as error:
            outcome = Outcome.CUT if has_head else Outcome.NOT_CONNECTED
            return _Attempt(outcome, type(error).__name__)


def _is_retried(status: int) -> bool:
    return status == 0 or status >= 500 or status in _RETRIED


def _refused(response: httpx.Response, content: bytes) -> _Attempt:
    try:
        code = orjson.loads(content)["error"]["code"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        code = "not from the front end"
    delay_ms = response.headers.get("retry-after-ms")
    retry_after_s = None if delay_ms is None else float(delay_ms) / 1000
    return _Attempt(
        Outcome.REFUSED, f"{response.status_code} {code}", retry_after_s=retry_after_s, status=response.status_code
    )


async def _read_stream(response: httpx.Response, task: Task, started_s: float) -> _Attempt:
    attempt = _Attempt(Outcome.CUT, "the stream ended without [DONE]")
    parts: list[str] = []
    reason, tokens, is_done = None, None, False
    async for line in response.aiter_lines():
        if line == "data: [DONE]":
            is_done = True
        elif line.startswith("data: "):
            event = orjson.loads(line[6:])
            if "error" in event:
                return _Attempt(Outcome.FAILED, f"event {event['error']['code']}", first_token_s=attempt.first_token_s)
            if attempt.first_token_s is None:
                attempt.first_token_s = time.monotonic() - started_s
            for choice in event["choices"]:
                parts.append(choice["text"])
                reason = choice["finish_reason"] or reason
            tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
            attempt.fingerprint = event.get("system_fingerprint", attempt.fingerprint)
    if is_done:
        text = "".join(parts)
        is_whole = text == task.text and (reason != "length" or tokens == task.max_tokens)
        attempt.outcome = Outcome.WHOLE if is_whole and reason is not None else Outcome.WRONG
        attempt.problem = "" if is_whole else f"{len(text)} of {len(task.text)} characters, {reason}, {tokens}"
    return attempt
