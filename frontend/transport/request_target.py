"""The forms of a request target other than a path (RFC 9112, section 3.2)."""

from __future__ import annotations

import httptools


def normalized(target: bytes, headers: list[tuple[bytes, bytes]]) -> bytes:
    """The path and query of a target. The host of an absolute URL replaces the Host header, as the RFC demands.

    `OPTIONS *`, which is about the server as a whole, becomes its root.
    """
    if target == b"*":
        return b"/"
    try:
        url = httptools.parse_url(target)
    except httptools.HttpParserInvalidURLError:  # such as host:port of a CONNECT; the base class refuses it
        return target
    if url.schema not in (b"http", b"https") or not url.host:
        return target
    host = b"[%s]" % url.host if b":" in url.host else url.host
    headers[:] = [(name, value) for name, value in headers if name != b"host"]
    headers.append((b"host", host if url.port is None else b"%s:%d" % (host, url.port)))
    query = b"" if url.query is None else b"?" + url.query
    return (url.path or b"/") + query
