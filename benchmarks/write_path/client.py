"""The client's process: reads streams to their end, or repeats a short request over kept-alive connections."""

from __future__ import annotations

import json
import select
import socket
import sys
import threading
import time

PATH = "/v1/completions"
STREAM_TOKENS = 10**6  # max_tokens of a stream, which ends with its connection
_CONNECTIONS = 8
_READ_INTERVAL_S = 0.004  # a little less than the time between two events
_TIMEOUT_S = 30.0


CHAT_PATH = "/v1/chat/completions"


def request_bytes(*, stream: bool, max_tokens: int, is_chat: bool = False) -> bytes:
    """One completion request, or a chat whose only message is the same text."""
    text = "The capital of France is"
    prompt = {"messages": [{"role": "user", "content": text}]} if is_chat else {"prompt": text}
    body = json.dumps({"model": "tiny", **prompt, "max_tokens": max_tokens, "stream": stream}).encode()
    head = f"POST {CHAT_PATH if is_chat else PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    ending = "close" if max_tokens == STREAM_TOKENS else "keep-alive"
    return f"{head}Connection: {ending}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def read_streams(port: int, count: int, *, is_chat: bool) -> None:
    """Opens `count` streams and discards their events."""
    poller, connections = select.epoll(), {}
    for _ in range(count):
        connection = socket.create_connection(("127.0.0.1", port), _TIMEOUT_S)
        connection.sendall(request_bytes(stream=True, max_tokens=STREAM_TOKENS, is_chat=is_chat))
        connection.setblocking(False)
        poller.register(connection, select.EPOLLIN)
        connections[connection.fileno()] = connection
    while connections:
        for number, _ in poller.poll(_TIMEOUT_S):
            if not connections[number].recv(2**16):
                poller.unregister(number)
                connections.pop(number).close()
        time.sleep(_READ_INTERVAL_S)


def repeat_request(port: int, count: int, *, stream: bool, is_chat: bool) -> None:
    """Sends the request `count` times over one connection. Raises RuntimeError if one fails."""
    request, end = request_bytes(stream=stream, max_tokens=1, is_chat=is_chat), b"0\r\n\r\n" if stream else b"}"
    connection = socket.create_connection(("127.0.0.1", port), _TIMEOUT_S)
    for _ in range(count):
        connection.sendall(request)
        response = b""
        while not response.endswith(end):
            part = connection.recv(2**16)
            if not part:
                raise RuntimeError("The server has closed the connection.")
            response += part
        if not response.startswith(b"HTTP/1.1 200 "):
            raise RuntimeError(response.decode(errors="replace"))


def main() -> None:
    """`client PORT streams COUNT`, `client PORT json COUNT`, `client PORT sse COUNT`; with `chat` behind it, chats."""
    port, kind, count, is_chat = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4:] == ["chat"]
    if kind == "streams":
        read_streams(port, count, is_chat=is_chat)
        return
    arguments, options = (port, count // _CONNECTIONS), {"stream": kind == "sse", "is_chat": is_chat}
    threads = [threading.Thread(target=repeat_request, args=arguments, kwargs=options) for _ in range(_CONNECTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
