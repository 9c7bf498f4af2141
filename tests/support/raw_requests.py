"""Completion requests over a plain socket: for clients that disconnect, do not read, or send in pieces."""

from __future__ import annotations

import json
import socket

from tests.support.stack import MODEL, RunningStack


def request_bytes(stack: RunningStack, **body: object) -> tuple[bytes, bytes]:
    """The head and the body of a completion request."""
    data = json.dumps({"model": MODEL, "prompt": "Once upon a time", "max_tokens": 4000, **body}).encode()
    head = (
        f"POST /openai/v1/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {stack.api_key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    return head.encode(), data


def open_request(stack: RunningStack, *, receive_buffer: int | None = None, **body: object) -> socket.socket:
    """Sends a completion request and returns the open connection. `receive_buffer` is its SO_RCVBUF in bytes."""
    connection = socket.socket()
    connection.settimeout(30)
    if receive_buffer is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.connect(stack.address)
    connection.sendall(b"".join(request_bytes(stack, **body)))
    return connection
