"""Attacks on HTTP before and around the key: heads, connections and bodies. Most need no key at all."""

from __future__ import annotations

import asyncio
import contextlib
import selectors
import socket
import struct
from collections.abc import Callable

import orjson

from benchmarks.siege.attacks.attack import CLOSED, HUNG_UP, NOT_CONNECTED, Attack, Load, RepeatingAttack
from benchmarks.siege.target import HOSTILE
from benchmarks.siege.wire import connected

MIB = 2**20
_BODY = 4 * MIB - 256  # just below the limit of a body
_ENDS_EARLY = frozenset({"400", "401", "408", "413", "429", "431", "503", CLOSED, HUNG_UP, NOT_CONNECTED})


class SlowHeads(RepeatingAttack):
    """Slowloris."""

    name, line = "slow heads", "200 connections that send a head one byte a second"
    allowed = _ENDS_EARLY
    clients = 200

    async def once(self, load: Load) -> None:
        """Sends a head slowly until the server answers or the phase ends."""
        await _drip(load, b"GET /openai/v1/models HTTP/1.1\r\nHost: localhost\r\nX-Slow: ", b"a", pause_s=1.0)


class SlowBodies(RepeatingAttack):
    """Slow bodies of an authenticated client."""

    name, line = "slow bodies", "100 connections that send a body of 1 MiB one byte a second, with a key"
    allowed = _ENDS_EARLY
    clients = 100

    async def once(self, load: Load) -> None:
        """Sends a body slowly until the server answers or the phase ends."""
        await _drip(load, load.target.head(HOSTILE, MIB), b" ", pause_s=1.0)


class HugeHeads(RepeatingAttack):
    """Heads far beyond any limit."""

    name, line = "huge heads", "heads of 1 MiB: one long header, or thousands of short ones"
    allowed = _ENDS_EARLY

    async def once(self, load: Load) -> None:
        """Sends one huge head, and reads what the server answers."""
        start = b"GET /openai/v1/models HTTP/1.1\r\nHost: localhost\r\n"
        if load.random.random() < 0.5:
            headers = b"X-Long: " + b"a" * MIB + b"\r\n"
        else:
            headers = b"".join(b"X-%d: a\r\n" % number for number in range(100_000))
        async with connected(load.target) as connection:
            load.tally.count_answer(await connection.exchange(start + headers + b"\r\n"))


class IdleConnections(Attack):
    """Connections that send nothing, opened at a bounded rate and reopened when the server closes them.

    Plain sockets: a stream of asyncio for each would cost this process more than the server.
    """

    name, line = "idle connections", "up to 17,000 connections that send nothing, opened at 900 a second"
    allowed = frozenset({CLOSED, NOT_CONNECTED, HUNG_UP})
    _limit = 17_000
    _rate = 900  # a second
    _period_s = 0.1

    async def run(self, load: Load) -> None:
        """Opens connections until the limit is reached, and keeps their number."""
        with selectors.DefaultSelector() as selector:
            try:
                while not load.stopping.is_set():
                    for _ in range(min(int(self._rate * self._period_s), self._limit - len(selector.get_map()))):
                        self._open(load, selector)
                    self._drop_closed(load, selector)
                    await load.rest(self._period_s)
            finally:
                open_ones = [item.fileobj for item in selector.get_map().values()]
                load.tally.outcomes[HUNG_UP] += len(open_ones)
                for item in open_ones:
                    assert isinstance(item, socket.socket)
                    item.close()

    @staticmethod
    def _open(load: Load, selector: selectors.BaseSelector) -> None:
        try:
            plain = socket.socket()
        except OSError:  # this process has no descriptors left
            return
        plain.setblocking(False)
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if plain.connect_ex((load.target.host, load.target.port)) not in (0, 115):  # EINPROGRESS
            plain.close()
            load.tally.count(NOT_CONNECTED)
            return
        selector.register(plain, selectors.EVENT_READ)

    @staticmethod
    def _drop_closed(load: Load, selector: selectors.BaseSelector) -> None:
        for key, _ in selector.select(0):
            plain = key.fileobj
            assert isinstance(plain, socket.socket)
            with contextlib.suppress(OSError):
                if plain.recv(4096):
                    continue  # a response, such as a 408 or 503; the close comes next
            selector.unregister(plain)
            plain.close()
            load.tally.count(CLOSED)


class BigBodies(RepeatingAttack):
    """Large valid bodies of an authenticated client."""

    name, line = "big bodies", "16 bodies of 4 MiB at once, with a key: a long text, or a million token ids"
    allowed = _ENDS_EARLY
    clients = 16
    pause_s = 0.5
    key: str | None = HOSTILE

    async def once(self, load: Load) -> None:
        """Sends a large body in pieces, so that all of them are under way together."""
        if load.random.random() < 0.5:
            prompt = b'"' + b"word " * (_BODY // 5 - 40) + b'"'
        else:
            prompt = b"[" + b"100," * (_BODY // 4 - 60) + b"100]"
        body = b'{"model":' + orjson.dumps(load.target.model) + b',"prompt":' + prompt + b"}"
        await _send_body(load, self.key, body)


class UnauthenticatedBodies(BigBodies):
    """Large bodies without a key."""

    name, line = "bodies without a key", "16 bodies of 4 MiB at once, without a key"
    allowed = _ENDS_EARLY - {"400"}
    key = None


class JsonBombs(RepeatingAttack):
    """Bodies that parse to many times their size."""

    name, line = "JSON bombs", "bodies of 4 MiB that parse to many times their size: brackets, objects, empty lists"
    allowed = _ENDS_EARLY
    clients = 2
    pause_s = 0.5
    _bodies: tuple[Callable[[], bytes], ...] = (
        lambda: b"[" * _BODY,
        lambda: b'{"a":' * (_BODY // 5),
        lambda: b'{"prompt":[' + b"[]," * (_BODY // 3 - 10) + b"[]]}",
        lambda: b'{"prompt":[' + b"1," * (_BODY // 2 - 10) + b"1]}",
        lambda: b'{"prompt":"a","logit_bias":{' + b'"1":1,' * (_BODY // 6 - 10) + b'"2":1}}',
        lambda: b'{"prompt":"a","stop":[' + b'"",' * (_BODY // 3 - 10) + b'""]}',
    )

    async def once(self, load: Load) -> None:
        """Sends one of the bodies."""
        await _send_body(load, HOSTILE, load.random.choice(self._bodies)())


class Pipelining(RepeatingAttack):
    """Many requests in one piece."""

    name, line = "pipelining", "4 connections that each send 200 requests in one piece"
    allowed = _ENDS_EARLY | {"200", "404"}
    pause_s = 0.2
    _requests = 200

    async def once(self, load: Load) -> None:
        """Sends many small requests at once, and then reads their responses."""
        paths = ("/openai/v1/models", "/health/live", "/openai/v1/nothing", "/health/ready")
        data = b"".join(load.target.get(path, is_last=False) for path in paths * (self._requests // len(paths)))
        async with connected(load.target) as connection:
            await connection.send(data)
            for _ in range(self._requests):
                load.tally.count_answer(await connection.answer())


class ReadsNothing(RepeatingAttack):
    """Requests whose responses are never read."""

    name, line = "connections that read nothing", "20 connections that request 0.5 MB a second each and read nothing"
    allowed = _ENDS_EARLY
    clients = 20
    pause_s = 0.5
    _path = "/openai/openapi.json"  # 63 KB, without a key
    _requests = 4

    async def once(self, load: Load) -> None:
        """Sends requests until the server reads no more, and then waits for the end of the phase."""
        requests = load.target.get(self._path, is_last=False) * self._requests
        async with connected(load.target, receive_buffer=4096) as connection:
            connection.writer.transport.pause_reading()  # type: ignore[attr-defined]  # a ReadTransport too
            while not load.stopping.is_set():
                with contextlib.suppress(asyncio.TimeoutError):  # the server reads no more, as it should
                    await asyncio.wait_for(connection.send(requests), self.pause_s)
                await load.rest(self.pause_s)
        load.tally.count(HUNG_UP)


async def _drip(load: Load, start: bytes, piece: bytes, *, pause_s: float) -> None:
    """Sends `start`, then `piece` after each pause, until the server responds or closes, or the phase ends."""
    async with connected(load.target) as connection:
        answer = asyncio.create_task(connection.answer())
        try:
            await connection.send(start)
            while not (load.stopping.is_set() or answer.done()):
                await asyncio.wait({answer}, timeout=pause_s)
                if not answer.done():
                    with contextlib.suppress(ConnectionError):  # the answer is next, or the same error from its task
                        await connection.send(piece)
            if answer.done():
                load.tally.count_answer(answer.result())
            else:
                load.tally.count(HUNG_UP)
        finally:
            answer.cancel()


async def _send_body(load: Load, key: str | None, body: bytes) -> None:
    async with connected(load.target) as connection:
        load.tally.count_answer(await connection.exchange(load.target.head(key, len(body)) + body))


TRANSPORT_ATTACKS: tuple[Attack, ...] = (
    SlowHeads(),
    HugeHeads(),
    IdleConnections(),
    SlowBodies(),
    BigBodies(),
    UnauthenticatedBodies(),
    JsonBombs(),
    Pipelining(),
    ReadsNothing(),
)
