"""Reads on after a head with an Upgrade header, which this server ignores (RFC 9110, section 7.8).

The JDK's HttpClient and `curl --http2` offer `Upgrade: h2c` with their requests. httptools stops at the end of such a
head, as if another protocol followed. So a second parser, which gets the lines that frame the body, reads the rest.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import httptools

_FRAMING = frozenset({b"content-length", b"transfer-encoding"})


def framing_of(headers: Iterable[tuple[bytes, bytes]]) -> list[bytes]:
    """The lines of a head that announce a body. Empty if the request has none."""
    return [b"%s: %s\r\n" % (name, value) for name, value in headers if name in _FRAMING]


def head_again(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """A head with the same body, for the parser of `parser_after_upgrade`. Empty if the request has no body."""
    framing = framing_of(headers)
    return b"POST / HTTP/1.1\r\n%s\r\n" % b"".join(framing) if framing else b""


def parser_after_upgrade(protocol: Any, *, has_head: bool) -> httptools.HttpRequestParser:
    """A parser for the bytes after a head, which `head_again` comes before if the request has a body."""
    parser = httptools.HttpRequestParser(_Callbacks(protocol, has_head=has_head))
    parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as the base class does
    return parser


class _Callbacks:
    """The parser's callbacks. A head that the protocol already knows is not reported again; `has_head`: one follows."""

    def __init__(self, protocol: Any, *, has_head: bool) -> None:
        self._protocol = protocol
        self._is_known = has_head
        self.on_body = protocol.on_body
        self.on_message_complete = protocol.on_message_complete

    def on_message_begin(self) -> None:
        if not self._is_known:
            self._protocol.on_message_begin()

    def on_url(self, url: bytes) -> None:
        if not self._is_known:
            self._protocol.on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._is_known:
            self._protocol.on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._is_known:
            self._is_known = False
        else:
            self._protocol.on_headers_complete()
