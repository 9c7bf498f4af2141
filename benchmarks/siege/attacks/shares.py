"""Attacks on places: requests, choices and tokens of one key that hold slots, queues, the cache or the event loop."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

from benchmarks.siege.attacks.attack import CLOSED, HUNG_UP, NOT_CONNECTED, Attack, Load, RepeatingAttack
from benchmarks.siege.target import HOSTILE
from benchmarks.siege.wire import Answer, ask, connected

_MOST_RETRY_S = 30.0


class PlaceAttack(RepeatingAttack):
    """Clients that repeat one completion request; a refused one is repeated after its Retry-After."""

    body: ClassVar[dict[str, Any]]
    patience_s = 600.0  # they may wait for long: that is their own share

    async def once(self, load: Load) -> None:
        """Sends one request and waits for its whole response."""
        body = {"prompt": f"{load.random.random()} Once upon a time", "ignore_eos": True, **self.body}
        answer = await ask(load.target, load.target.completion(HOSTILE, **body))
        load.tally.count_answer(answer)
        if answer.status >= 400:
            await load.rest(_retry_after_s(answer))


class ThousandRequests(PlaceAttack):
    """More requests than there are slots."""

    name, line = "a thousand requests", "1,000 requests of one key for 500 tokens each, all at once"
    clients = 1000
    body: ClassVar[dict[str, Any]] = {"max_tokens": 500}

    async def run(self, load: Load) -> None:
        """Starts the clients over one second: a burst of connections is another attack."""

        async def start_late(number: int) -> None:
            await load.rest(number / self.clients)
            await self._client(load)

        await asyncio.gather(*(start_late(number) for number in range(self.clients)))


class ManyChoices(PlaceAttack):
    """The most choices of one request."""

    name, line = "128 choices", "4 clients that request 128 choices of 2,000 tokens each"
    body: ClassVar[dict[str, Any]] = {"n": 128, "max_tokens": 2000, "temperature": 1}


class LongPrompts(PlaceAttack):
    """Prompts that fill the context."""

    name, line = "long prompts", "8 clients that send a new prompt of some 8,000 tokens each time"
    clients = 8
    body: ClassVar[dict[str, Any]] = {"max_tokens": 1}

    async def once(self, load: Load) -> None:
        """Sends one long prompt, which no cache has."""
        words = " ".join(load.random.choice(("one", "two", "red", "sun", "dog", "the")) for _ in range(7_900))
        answer = await ask(load.target, load.target.completion(HOSTILE, prompt=words, **self.body))
        load.tally.count_answer(answer)
        if answer.status >= 400:
            await load.rest(_retry_after_s(answer))


class BestPriority(PlaceAttack):
    """Requests that ask to go first."""

    name, line = "priority -1000", "96 clients that request 200 tokens each with the priority -1000"
    clients = 96
    body: ClassVar[dict[str, Any]] = {"max_tokens": 200, "priority": -1000}


class Refusals(RepeatingAttack):
    """Requests that are refused, over connections that stay open."""

    name, line = "floods of refusals", "8 connections that send 25 refused requests a second each: 401, 400, 404"
    allowed = frozenset({"400", "401", "404", "429", "503", HUNG_UP, CLOSED})
    clients = 8
    _period_s = 0.04

    async def once(self, load: Load) -> None:
        """Sends refused requests over one connection until the server closes it or the phase ends."""
        target = load.target
        requests = (
            target.head(None, 2, extra="Authorization: Bearer sk-wrong\r\n") + b"{}",
            target.completion(HOSTILE, prompt="a", max_tokens=-1),
            target.head(HOSTILE, 2, path="/openai/v1/nothing") + b"{}",
            target.completion(None, prompt="a"),
        )
        async with connected(target) as connection:
            while not load.stopping.is_set():
                answer = await connection.exchange(load.random.choice(requests))
                load.tally.count_answer(answer)
                if answer.headers.get("connection", "").lower() == "close":
                    return
                await load.rest(self._period_s)


class CancelStorm(RepeatingAttack):
    """Streams that are closed as soon as they have begun."""

    name, line = "cancel storm", "10 clients that open streams and close them at once, some 100 a second"
    allowed = frozenset({"200", "429", "503", HUNG_UP, CLOSED})
    clients = 10
    pause_s = 0.1

    async def once(self, load: Load) -> None:
        """Opens a stream and hangs up, at once or at its first event."""
        body: dict[str, Any] = {"max_tokens": 2000, "stream": True, "ignore_eos": True}
        body["prompt"] = f"{load.random.random()} Hello"
        async with connected(load.target) as connection:
            await connection.send(load.target.completion(HOSTILE, **body))
            if load.random.random() < 0.5:
                status, headers = await connection.head()
                if status >= 400:
                    load.tally.count_answer(Answer(status, headers, await anext(connection.pieces(headers), b"")))
                    return
                await anext(connection.pieces(headers), b"")
        load.tally.count(HUNG_UP)


class SilentReader(RepeatingAttack):
    """Streams that are never read."""

    name, line = "streams never read", "8 clients that request 4 choices of 4,000 tokens as a stream and read nothing"
    allowed = frozenset({CLOSED, NOT_CONNECTED, HUNG_UP})
    clients = 8
    pause_s = 0.5

    async def once(self, load: Load) -> None:
        """Opens a stream, and reads nothing until the phase ends."""
        body: dict[str, Any] = {"max_tokens": 4000, "n": 4, "stream": True, "ignore_eos": True, "logprobs": 5}
        async with connected(load.target, receive_buffer=4096) as connection:
            connection.writer.transport.pause_reading()  # type: ignore[attr-defined]  # a ReadTransport too
            await connection.send(load.target.completion(HOSTILE, prompt="Hello", **body))
            await load.rest(self.patience_s)
        load.tally.count(HUNG_UP)


def _retry_after_s(answer: Answer) -> float:
    """Returns the seconds after which the server asks a refused client to return."""
    try:
        return min(max(float(answer.headers.get("retry-after", "1")), 0.5), _MOST_RETRY_S)
    except ValueError:
        return 1.0


SHARE_ATTACKS: tuple[Attack, ...] = (
    ThousandRequests(),
    ManyChoices(),
    LongPrompts(),
    BestPriority(),
    Refusals(),
    CancelStorm(),
    SilentReader(),
)
