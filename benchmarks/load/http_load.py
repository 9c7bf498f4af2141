"""Load client for HTTP: `python -m benchmarks.load.http_load ENDPOINT_JSON`.

One thread with epoll on raw sockets. For each piece that arrives, it reads, records the time and checks for the end of
the response: 4 to 10 microseconds, which leaves the shared cores to the server.
"""

from __future__ import annotations

import gc
import select
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import orjson

from benchmarks.load.http_recording import CompletionsEndpoint, ResponseEndDetector, read_response, with_known_tokens
from benchmarks.load.job import LoadJob, Timeline, serve_jobs

_MAX_PIECE_BYTES = 1 << 16
_CONNECT_TIMEOUT_S = 10.0


@dataclass
class _Recording:
    """One request and its response, piece by piece."""

    sent_s: float
    received: list[tuple[float, bytes]] = field(default_factory=list)  # arrival time in seconds, and data


class _Stream:
    """One connection, which sends its requests one after another."""

    def __init__(self, endpoint: CompletionsEndpoint, prompts: tuple[str, ...], job: LoadJob) -> None:
        self.socket = socket.create_connection(endpoint.address, timeout=_CONNECT_TIMEOUT_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._requests = iter(
            [endpoint.request(prompt, job.max_tokens, is_streamed=job.is_streamed) for prompt in prompts]
        )
        self.recordings: list[_Recording] = []
        self._end = ResponseEndDetector()

    def send_next(self) -> bool:
        """Sends the next request; returns False if none is left."""
        request = next(self._requests, None)
        if request is None:
            return False
        self._end = ResponseEndDetector()
        self.recordings.append(_Recording(time.perf_counter()))
        self.socket.sendall(request)
        return True

    def receive(self) -> bool:
        """Records the data that has arrived; returns False when the stream is over."""
        try:
            data = self.socket.recv(_MAX_PIECE_BYTES)
        except OSError:
            return False
        now_s = time.perf_counter()
        if not data:
            return False
        self.recordings[-1].received.append((now_s, data))
        return not self._end.is_end(data) or self.send_next()


def prepare(endpoint: CompletionsEndpoint, job: LoadJob) -> Callable[[], Callable[[], list[Timeline]]]:
    """Opens all connections, and returns the load itself."""
    streams = [_Stream(endpoint, prompts, job) for prompts in job.prompts]

    def load() -> Callable[[], list[Timeline]]:
        gc.disable()
        try:
            _run(streams, job.timeout_s)
        finally:
            gc.enable()
        return lambda: [_timeline(recording, endpoint, job) for stream in streams for recording in stream.recordings]

    return load


def _timeline(recording: _Recording, endpoint: CompletionsEndpoint, job: LoadJob) -> Timeline:
    timeline = read_response(recording.sent_s, recording.received, is_streamed=job.is_streamed)
    return with_known_tokens(timeline, job.max_tokens) if endpoint.generates_max_tokens else timeline


def _run(streams: list[_Stream], timeout_s: float) -> None:
    deadline = time.perf_counter() + timeout_s
    by_descriptor = {stream.socket.fileno(): stream for stream in streams}
    with select.epoll() as poll:
        for descriptor, stream in by_descriptor.items():
            stream.send_next()
            poll.register(descriptor, select.EPOLLIN)
        while by_descriptor and (left_s := deadline - time.perf_counter()) > 0:
            for descriptor, _ in poll.poll(left_s):
                stream = by_descriptor[descriptor]
                if not stream.receive():
                    poll.unregister(descriptor)
                    del by_descriptor[descriptor]
    for stream in streams:
        stream.socket.close()


def main(arguments: list[str]) -> None:
    """Serves jobs for the endpoint that the first argument contains as JSON."""
    endpoint = CompletionsEndpoint(**orjson.loads(arguments[0]))
    serve_jobs(lambda job: prepare(endpoint, job))


if __name__ == "__main__":
    main(sys.argv[1:])
