"""A small HTTP server of a test's own, with a handler of the standard library."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer

LOOPBACK = ("127.0.0.1", 0)
_POLL_S = 0.02
_JOIN_TIMEOUT_S = 10.0


class QuietLog:
    """To be put before BaseHTTPRequestHandler: logs nothing."""

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - the name is the library's
        """Keeps quiet."""


@contextmanager
def serving(server: ThreadingHTTPServer) -> Iterator[str]:
    """Runs a server of LOOPBACK until the end of the block. Yields its URL."""
    with server:
        thread = threading.Thread(target=server.serve_forever, args=(_POLL_S,), name="test-server")
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join(_JOIN_TIMEOUT_S)
