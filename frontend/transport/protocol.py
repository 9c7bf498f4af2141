"""One HTTP/1.1 connection: uvicorn's protocol, with limits on the head of a request and on what may follow it.

This is the one module that overrides methods of uvicorn's protocol. It, http10.py and half_closed.py read its state;
tests/contract/test_uvicorn.py lists both. Heads are limited here, before there is a request. Bodies are limited by the
app, once it knows the client's key. An error that happens here has the same JSON form as those of the app.

After a response, a client that has not sent its whole request may still be writing. If the server closed the
connection, the kernel would reset it, and most clients would report the reset instead of the response. So the server
closes its own direction, and discards what arrives for a while (the lingering close of RFC 9112, section 9.6).
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import httptools
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from frontend.api.route_paths import is_health
from frontend.response.cors import CorsPolicy
from frontend.response.errors import error_bytes, error_headers
from frontend.transport.connections import ConnectionTable
from frontend.transport.half_closed import probe
from frontend.transport.http10 import CloseDelimited
from frontend.transport.ignored_upgrade import framing_of, head_again, parser_after_upgrade
from frontend.transport.request_target import normalized
from frontend.transport.start_queue import StartQueue
from llm_pipeline.protocol.errors import ErrorCode, PipelineError

MAX_HEADERS = 128
MAX_PIPELINED = 16
"""Requests that wait for the response to the one before them. The connection closes after the last of them."""

_HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n"
_SHORT_BODY_BYTES = 64 * 1024  # read to its end after the response: then the connection can serve the next request
MAX_DISCARDED_BYTES = 16 * 1024 * 1024
_READ_BYTES = 256 * 1024  # that an event loop reads at once; may contain the last part of a body as well
_BYTES_OF_A_FIELD = 4  # ": " and the end of the line


class HeadLimitError(Exception):
    """Ends the parser's work in the middle of a head."""


class BoundedHttpProtocol(HttpToolsProtocol):
    """A connection that is known to the ConnectionTable from its beginning to its end."""

    def __init__(
        self,
        *args: Any,
        connection_table: ConnectionTable,
        start_queue: StartQueue,
        max_head_bytes: int,
        schema_url: str,
        cors: CorsPolicy,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._table = connection_table
        self._start_queue = start_queue
        self._max_head_bytes = max_head_bytes
        self._schema_url = schema_url
        self._cors = cors
        self._refusal: PipelineError | None = None  # the reason of an error that the parser reports as invalid HTTP
        self._head_bytes = 0  # without the first part, which may contain the end of another request
        self._overhead_bytes = 0  # received since the last part of a body or the last head
        self._is_in_head = False
        self._has_received = False  # anything since the last complete request
        self._is_in_rest = False  # of a short body whose response is complete
        self._is_deaf = False
        self._discarded_bytes = 0

    # --- Connection ---

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in the base class
        super().connection_made(transport)
        if not self._table.opens(self):
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._table.closes(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_deaf:
            self._discard(data)
            return
        was_in_head, was_in_rest, self._has_received = self._is_in_head, self._is_in_rest, True
        self._unset_keepalive_if_required()
        self._parse(data)
        if self._is_deaf or self.transport.is_closing():
            return
        if self._is_in_head and was_in_head:
            self._head_bytes += len(data)  # which the parser keeps, a header that is not complete as well
            if self._head_bytes > self._max_head_bytes:
                self._fail(self._head_too_large())
                return
        if not self._is_responding():
            if self._is_in_head or not was_in_rest:
                self._table.awaits_head(self)
            return
        self._overhead_bytes += len(data)  # such as a trailer after the body, which the parser keeps
        if self._overhead_bytes > self._max_head_bytes + _READ_BYTES:
            self._fail(self._head_too_large())

    def _parse(self, data: bytes) -> None:
        rest = data
        try:
            while rest:
                rest = self._parsed_up_to_upgrade(rest)
        except httptools.HttpParserError:
            if data.startswith(_HTTP2_PREFACE):
                message = (
                    "This port serves HTTP/1.1. Send the request as HTTP/1.1, or put a proxy for HTTP/2 before it."
                )
                self._refusal = PipelineError(ErrorCode.INVALID_HTTP, message)
            self.send_400_response("")

    def _parsed_up_to_upgrade(self, data: bytes) -> bytes:
        """Feeds the parser. Returns what follows a head with an Upgrade header, and replaces the parser."""
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            head = head_again(self.headers)
            self.parser = parser_after_upgrade(self, has_head=bool(head))
            return head + data[upgrade.args[0] :]
        return b""

    def eof_received(self) -> bool:  # type: ignore[override]  # None and False mean the same
        """The client sends nothing more. Returns True if it may wait for a response; otherwise it is gone.

        Clients that close only their own direction do it right after their request. HTTP/1.0 has no interim responses.
        """
        cycle = self.cycle  # of the last request
        if self._is_deaf or not self._is_responding() or cycle.more_body or cycle.response_started:
            return False
        if cycle.scope["http_version"] == "1.0":
            return False
        cycle.keep_alive = False
        if not self.pipeline:
            probe(self.transport, cycle)
        return True

    def drop(self) -> None:
        """Closes the connection at once."""
        self.transport.abort()

    def drain(self) -> None:
        """Closes the connection between two requests, or after the last response that is due.

        A client that kept it would otherwise send its next requests, and their retries, to a server that refuses them.
        A connection on which a request is arriving, or has yet to arrive, is closed after its response.
        """
        if self._is_responding():
            self.cycle.keep_alive = False
        elif self.cycle is not None and not (self._is_deaf or self._is_in_head or self._is_in_rest):
            self.transport.close()

    def on_head_timeout(self) -> None:
        """Refuses an incomplete head. Closes a connection without a byte silently: it has no request to answer."""
        if self._has_received:
            message = "The head of the request (request line and headers) did not arrive in time. Send it at once."
            self._fail(PipelineError(ErrorCode.REQUEST_TIMEOUT, message))
        else:
            self.drop()

    # --- Parser ---

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._is_in_head = True
        self._head_bytes = 0

    def on_headers_complete(self) -> None:
        self._is_in_head = self._has_received = False
        self._overhead_bytes = 0
        if not self.url.startswith(b"/"):
            self.url = normalized(self.url, self.headers)
        self._check_head()
        is_full = self._table.is_full
        if is_full and not is_health(self.url.partition(b"?")[0].decode("latin-1")):
            message = "This server has too many connections. Retry after the delay in the Retry-After header."
            self._refuse(PipelineError(ErrorCode.SERVICE_UNAVAILABLE, message))
        if len(self.pipeline) >= MAX_PIPELINED:
            raise HeadLimitError
        self._table.has_request(self)
        super().on_headers_complete()
        if is_full or self._table.is_draining:
            self.cycle.keep_alive = False

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        if cycle.scope["http_version"] == "1.0":
            app = CloseDelimited(app, cycle)  # type: ignore[arg-type,assignment]  # uvicorn's types for the same
        self._start_queue.start(super()._start_asgi_task, cycle, app)

    def on_body(self, body: bytes) -> None:
        self._overhead_bytes = 0
        super().on_body(body)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing() or self._is_responding():
            return
        if self.cycle.more_body and self._body_length() <= _SHORT_BODY_BYTES:
            self._is_in_rest = True
            self._table.lingers(self)
        elif self.cycle.more_body:
            self._linger()
        elif self._is_in_head:
            self._table.awaits_head(self)
        else:
            self._table.is_idle(self)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade() and framing_of(self.headers):
            return  # the parser expects another protocol instead of the body
        super().on_message_complete()
        if self._is_in_rest:
            self._is_in_rest = False
            self._table.is_idle(self)
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def send_400_response(self, msg: str) -> None:
        """Called by the base class if the parser fails, or a callback of it."""
        message = "The request is not valid HTTP/1.1. Send a request line and headers that are."
        self._fail(self._refusal or PipelineError(ErrorCode.INVALID_HTTP, message))

    # --- Refusals ---

    def _check_head(self) -> None:
        if len(self.headers) > MAX_HEADERS:
            message = f"The request has more than {MAX_HEADERS} headers. Send fewer."
            self._refuse(PipelineError(ErrorCode.HEADERS_TOO_LARGE, message))
        size = len(self.url) + sum([len(name) + len(value) + _BYTES_OF_A_FIELD for name, value in self.headers])
        if size > self._max_head_bytes:
            self._refuse(self._head_too_large())

    def _head_too_large(self) -> PipelineError:
        message = f"The request line and the headers are larger than {self._max_head_bytes} bytes. Send smaller ones."
        return PipelineError(ErrorCode.HEADERS_TOO_LARGE, message)

    def _refuse(self, error: PipelineError) -> None:
        """Ends the parser's work. The base class then calls send_400_response."""
        self._refusal = error
        raise HeadLimitError

    def _body_length(self) -> int:
        """The announced bytes of the last body; more than any limit if it is chunked."""
        return next((int(value) for name, value in self.headers if name == b"content-length"), sys.maxsize)

    def _is_responding(self) -> bool:
        """Whether a request has not got its whole response."""
        return bool(self.pipeline) or (self.cycle is not None and not self.cycle.response_complete)

    def _fail(self, error: PipelineError) -> None:
        """Writes an error and closes. Nothing can be written while a response is due: the last one then closes."""
        self._is_deaf = True
        if not self._is_responding():
            self._write_error(error)
            return
        cycle = self.cycle  # of the last request
        if not cycle.more_body or cycle.response_started or self.pipeline:
            cycle.keep_alive = False
            return
        cycle.disconnected = True  # its body can never be complete
        cycle.message_event.set()
        self._write_error(error)

    def _write_error(self, error: PipelineError) -> None:
        body = error_bytes(error, self._schema_url)
        headers = {
            "content-type": "application/json",
            "content-length": str(len(body)),
            "connection": "close",
            **error_headers(error),
        }
        origin = next((value for name, value in self.headers or () if name == b"origin"), None)
        own = (*self.server_state.default_headers, *self._cors.response_headers(origin))
        lines = [b"%s: %s\r\n" % header for header in own]
        lines += [f"{name}: {value}\r\n".encode() for name, value in headers.items()]
        self.transport.write(b"".join([STATUS_LINE[error.kind.status], *lines, b"\r\n", body]))
        self._linger()

    def _linger(self) -> None:
        self._is_deaf = True
        self._unset_keepalive_if_required()
        self._table.lingers(self)
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()

    def _discard(self, data: bytes) -> None:
        self._discarded_bytes += len(data)
        if self._discarded_bytes > MAX_DISCARDED_BYTES:
            self.drop()


def protocol_class(
    connections: ConnectionTable, *, max_head_bytes: int, schema_url: str, cors: CorsPolicy
) -> type[asyncio.Protocol]:
    """The class of the connections of one server. `schema_url` is the $schema of an error."""
    start_queue = StartQueue()

    class ServerProtocol(BoundedHttpProtocol):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(
                *args,
                connection_table=connections,
                start_queue=start_queue,
                max_head_bytes=max_head_bytes,
                schema_url=schema_url,
                cors=cors,
                **kwargs,
            )

    return ServerProtocol
