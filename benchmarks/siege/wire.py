"""HTTP/1.1 over plain asyncio connections, for clients that send anything and measure when bytes arrive."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import Any

import orjson

from benchmarks.siege.target import Target

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER of 0 s: no port is left in TIME_WAIT
_BUFFER = 256 * 1024


class WireError(Exception):
    """The response is not HTTP/1.1 as the server writes it."""


@dataclass(frozen=True)
class Answer:
    """A whole response."""

    status: int
    headers: dict[str, str]  # names in lower case
    body: bytes

    @property
    def code(self) -> str | None:
        """The code of an error in the API's form; None for a body of another form."""
        try:
            document: Any = orjson.loads(self.body)
            return str(document["error"]["code"])
        except (orjson.JSONDecodeError, KeyError, TypeError):
            return None

    @property
    def outcome(self) -> str:
        """The status, with the code of the error if there is one: `200`, `429 queue_full`."""
        if self.status < 400:
            return str(self.status)
        return f"{self.status} {self.code or 'without a code'}"


class Connection:
    """One connection to the server."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, data: bytes) -> None:
        """Sends bytes, and waits while the server does not take them. Raises ConnectionError if it has closed."""
        self.writer.write(data)
        await self.writer.drain()

    async def exchange(self, data: bytes) -> Answer:
        """Sends bytes and reads one response, which may come before the server has taken all of them."""
        answer = asyncio.create_task(self.answer())
        try:
            with contextlib.suppress(ConnectionError):  # what has arrived before the close is still a response
                await self.send(data)
            return await answer
        finally:
            answer.cancel()

    async def answer(self) -> Answer:
        """Reads one response. Raises ConnectionError or IncompleteReadError if it is cut, WireError if malformed."""
        status, headers = await self.head()
        pieces = [piece async for piece in self.pieces(headers)]
        return Answer(status, headers, b"".join(pieces))

    async def head(self) -> tuple[int, dict[str, str]]:
        """Reads status and headers of a response, whose body is next."""
        data = await self._line(b"\r\n\r\n")
        first, *lines = data[:-4].decode("latin-1").split("\r\n")
        version, _, rest = first.partition(" ")
        if not version.startswith("HTTP/1.") or not rest[:3].isdigit():
            raise WireError(f"Not a status line: {first[:80]!r}")
        fields = (line.partition(":") for line in lines)
        return int(rest[:3]), {name.strip().lower(): value.strip() for name, _, value in fields}

    async def pieces(self, headers: dict[str, str]) -> AsyncIterator[bytes]:
        """Yields the body in the pieces in which it arrives."""
        if "chunked" in headers.get("transfer-encoding", ""):
            while size := int(await self._line(), 16):
                yield (await self.reader.readexactly(size + 2))[:-2]
            await self._line()
        elif "content-length" in headers:
            if length := int(headers["content-length"]):
                yield await self.reader.readexactly(length)
        else:
            while piece := await self.reader.read(_BUFFER):
                yield piece

    async def _line(self, end: bytes = b"\r\n") -> bytes:
        try:
            return await self.reader.readuntil(end)
        except asyncio.LimitOverrunError as error:
            raise WireError("A line of the response is too long.") from error


@contextlib.asynccontextmanager
async def connected(target: Target, *, receive_buffer: int | None = None) -> AsyncGenerator[Connection, None]:
    """Opens a connection for a block, and resets it at the end. Raises OSError if the server does not accept it."""
    plain = socket.socket()
    plain.setblocking(False)
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    if receive_buffer is not None:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    try:
        await asyncio.get_running_loop().sock_connect(plain, (target.host, target.port))
        reader, writer = await asyncio.open_connection(sock=plain, limit=_BUFFER)
    except BaseException:
        plain.close()
        raise
    try:
        yield Connection(reader, writer)
    finally:
        writer.transport.abort()


async def ask(target: Target, request: bytes) -> Answer:
    """Sends one request over a connection of its own."""
    async with connected(target) as connection:
        return await connection.exchange(request)
