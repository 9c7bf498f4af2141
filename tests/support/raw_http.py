"""HTTP over a plain socket of an event loop: for clients that send half a request, nothing, or too much."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from tests.support.app import KEY, MODEL, Running

LIMIT_S = 20.0
LIVE = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"


@dataclass(frozen=True)
class RawResponse:
    """A response with a Content-Length."""

    status: int
    headers: dict[str, str]  # names in lower case
    body: bytes

    @property
    def error_code(self) -> str:
        """The code of an error in the form of the API."""
        document = json.loads(self.body)
        assert document["status"] == self.status
        assert document["error"]["message"] == document["detail"]
        code: str = document["error"]["code"]
        return code


class RawConnection:
    """One connection to a server. Every wait has a limit."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    def write(self, data: bytes) -> None:
        """Sends bytes in the background, as far as the server reads them."""
        self._writer.write(data)

    async def sent(self) -> None:
        """Returns when nearly everything was sent."""
        await asyncio.wait_for(self._writer.drain(), LIMIT_S)

    def half_close(self) -> None:
        """Sends nothing more."""
        self._writer.write_eof()

    async def response(self) -> RawResponse:
        """The next response."""
        head = (await asyncio.wait_for(self._reader.readuntil(b"\r\n\r\n"), LIMIT_S)).decode().split("\r\n")
        pairs = (line.split(": ", 1) for line in head[1:] if line)
        headers = {name.lower(): value for name, value in pairs}
        body = await asyncio.wait_for(self._reader.readexactly(int(headers["content-length"])), LIMIT_S)
        return RawResponse(int(head[0].split()[1]), headers, body)

    async def line(self) -> bytes:
        """The next line, with its end."""
        return await asyncio.wait_for(self._reader.readline(), LIMIT_S)

    def finish(self) -> None:
        """Closes this end as a program that ends does, without a reset."""
        self._writer.close()

    async def until_closed(self) -> bytes:
        """Everything that arrives until the end of the connection."""
        return await asyncio.wait_for(self._reader.read(), LIMIT_S)

    async def is_closed(self) -> bool:
        """Waits for the end of the connection. Returns False if something else arrives."""
        try:
            return await asyncio.wait_for(self._reader.read(1), LIMIT_S) == b""
        except ConnectionError:
            return True

    def close(self) -> None:
        """Closes this end."""
        self._writer.transport.abort()


@asynccontextmanager
async def connect(app: Running) -> AsyncIterator[RawConnection]:
    """A connection to the server of a test."""
    url = app.client.base_url
    reader, writer = await asyncio.wait_for(asyncio.open_connection(url.host, url.port), LIMIT_S)
    connection = RawConnection(reader, writer)
    try:
        yield connection
    finally:
        connection.close()


def post_head(*, length: int | None, key: str = KEY, headers: bytes = b"") -> bytes:
    """The head of a completion request; chunked if `length` is None."""
    framing = b"Transfer-Encoding: chunked" if length is None else b"Content-Length: %d" % length
    return (
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\n"
        b"Content-Type: application/json\r\n%s\r\n%s\r\n" % (key.encode(), framing, headers)
    )


def body_of(**fields: Any) -> bytes:
    """The body of a completion request."""
    return json.dumps({"model": MODEL, "prompt": "Hi", "max_tokens": 2, **fields}).encode()


def completion_request(**fields: Any) -> bytes:
    """A whole completion request."""
    body = body_of(**fields)
    return post_head(length=len(body)) + body
