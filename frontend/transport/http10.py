"""Responses to HTTP/1.0 requests, which know no chunks: the end of the connection ends them (RFC 9112, section 7)."""

from __future__ import annotations

from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class CloseDelimited:
    """Runs an app for one HTTP/1.0 request. `cycle` is uvicorn's, which would send chunks without a Content-Length."""

    def __init__(self, app: ASGIApp, cycle: Any) -> None:
        self._app = app
        self._cycle = cycle
        cycle.waiting_for_100_continue = False  # must be ignored in HTTP/1.0 (RFC 9110, section 10.1.1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        cycle = self._cycle

        async def send_without_chunks(message: Message) -> None:
            if message["type"] == "http.response.start":
                cycle.chunked_encoding = False  # so that uvicorn neither adds chunks nor counts the bytes of the body
            else:
                cycle.expected_content_length = len(message.get("body", b""))
            await send(message)

        await self._app(scope, receive, send_without_chunks)
