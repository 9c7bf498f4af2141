"""Keeps decode from running ahead of postprocess: a window of chunks that are sent and not handled yet.

Between the two stages stands a queue of Triton's without a bound. decode can send faster than postprocess can handle,
and then every stream would lag further behind for as long as the load lasts, while the queue grew. With a window the
tokens wait in decode's outboxes instead, where they are cheap: the next chunk of their request takes them all along.

decode owns a datagram socket; each chunk says where it is, and postprocess reports there, once for each of its batches,
how many chunks it has handled. Both are on one machine, because one tritonserver runs both.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable

WINDOW_CHUNKS = 8
"""Enough to fill postprocess's next batch while it works on one; each more adds its handling to the lag (of 4, 8 and
16, 8 gave the most tokens/s at 64 and at 256 streams)."""

PATIENCE_S = 0.25
"""After this long a chunk counts as handled: reports get lost when postprocess dies, a chunk of a request that Triton
cancelled never reaches it, and who calls decode alone sends none."""

_COUNT_BYTES = 4


class SendWindow:
    """decode's side. Not thread-safe: it belongs to the thread that sends."""

    def __init__(
        self,
        size: int = WINDOW_CHUNKS,
        patience_s: float = PATIENCE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.address = f"triton-completions-{secrets.token_hex(8)}"
        self._size = size
        self._patience_s = patience_s
        self._clock = clock
        self._sent_at: deque[float] = deque()  # of the chunks that are not handled yet, oldest first
        self._socket = _socket()
        self._socket.bind(_abstract(self.address))

    def enter(self) -> None:
        """Count one more chunk; waits while the window is full, at most until its oldest chunk is `patience_s` old."""
        self._socket.settimeout(0)
        while self._sent_at and self._read_report():
            pass
        self._forget_old()
        while len(self._sent_at) >= self._size:
            self._socket.settimeout(max(self._sent_at[0] + self._patience_s - self._clock(), 1e-3))
            self._read_report()
            self._forget_old()
        self._sent_at.append(self._clock())

    def close(self) -> None:
        self._socket.close()

    def _forget_old(self) -> None:
        limit = self._clock() - self._patience_s
        while self._sent_at and self._sent_at[0] <= limit:
            self._sent_at.popleft()

    def _read_report(self) -> bool:
        try:
            report = self._socket.recv(_COUNT_BYTES)
        except (TimeoutError, BlockingIOError):
            return False
        for _ in range(min(int.from_bytes(report, "little"), len(self._sent_at))):
            self._sent_at.popleft()
        return True


class AckSender:
    """postprocess's side. Not thread-safe."""

    def __init__(self) -> None:
        self._socket = _socket()
        self._socket.setblocking(False)

    def send(self, addresses: Iterable[str]) -> None:
        """Report one handled chunk to each of `addresses`, where one stands as often as it has chunks."""
        for address, count in Counter(addresses).items():
            # decode is gone, slow to read, or no address at all: its wait has a limit
            with contextlib.suppress(OSError, ValueError):
                self._socket.sendto(count.to_bytes(_COUNT_BYTES, "little"), _abstract(address))

    def close(self) -> None:
        self._socket.close()


def _socket() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)


def _abstract(address: str) -> str:
    """Linux's abstract namespace: no file that could be left behind."""
    return f"\0{address}"
