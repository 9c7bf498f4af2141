"""Keeps decode from running ahead of postprocess: a window of chunks that have been sent but not handled yet.

Triton's queue between the two stages has no limit. If decode sent faster than postprocess can handle, the queue would
grow, and every stream would lag further behind for the duration of the load. With a window, the tokens wait in decode's
outboxes instead, where they are cheap: the next chunk of their request takes all of them.

Decode owns a datagram socket (AF_UNIX); each chunk carries its address, and postprocess acknowledges there, once per
batch, how many chunks it has handled. Both are on one machine, because one tritonserver runs both.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable

WINDOW_CHUNKS = 8
"""Fills postprocess's next batch while it works on one; each further chunk adds its handling time to the lag. Of 4, 8
and 16, 8 gave the most tokens/s at 64 and at 256 streams."""

ACK_TIMEOUT_S = 0.25
"""After this long a chunk counts as handled: acks are lost if postprocess dies, a chunk of a request that Triton
cancelled never reaches it, and direct callers of decode send none."""

_COUNT_BYTES = 4  # uint32, little-endian


class SendWindow:
    """Limits the chunks on their way to postprocess. Not thread-safe: the sender pool guards it."""

    def __init__(
        self,
        size: int = WINDOW_CHUNKS,
        ack_timeout_s: float = ACK_TIMEOUT_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.address = f"triton-completions-{secrets.token_hex(8)}"
        self._size = size
        self._ack_timeout_s = ack_timeout_s
        self._clock = clock
        self._sent_at: deque[float] = deque()  # of the chunks that are not handled yet, oldest first
        self._silent_since: float | None = None  # when the first chunk after the last ack was sent
        self._socket = _socket()
        self._socket.bind(_abstract(self.address))

    def enter(self) -> None:
        """Counts one more chunk. Blocks while the window is full: until an ack, or until its oldest chunk times out."""
        self._read_acks()
        self._remove_timed_out()
        while len(self._sent_at) >= self._size:
            self._socket.settimeout(max(self._sent_at[0] + self._ack_timeout_s - self._clock(), 1e-3))
            self._read_ack()
            self._remove_timed_out()
        now = self._clock()
        self._sent_at.append(now)
        if self._silent_since is None:
            self._silent_since = now

    @property
    def silence_s(self) -> float:
        """Seconds that postprocess has not acknowledged anything, although chunks were sent."""
        return 0.0 if self._silent_since is None else self._clock() - self._silent_since

    def has_lost(self, limit_s: float) -> bool:
        """Whether postprocess has acknowledged nothing for `limit_s` seconds, although chunks were sent.

        Waits for an ack once more before it returns True, because after a pause of the machine all chunks look old.
        """
        return self.silence_s > limit_s and not self._wait_for_ack()

    def unhandled_s(self) -> float:
        """Seconds since the oldest chunk that is not handled was sent; 0 if all are handled."""
        self._read_acks()
        return self._clock() - self._sent_at[0] if self._sent_at else 0.0

    def forget_sent(self) -> None:
        """Counts all chunks as handled: they are lost."""
        self._sent_at.clear()
        self._silent_since = None

    def close(self) -> None:
        self._socket.close()

    def _remove_timed_out(self) -> None:
        limit = self._clock() - self._ack_timeout_s
        while self._sent_at and self._sent_at[0] <= limit:
            self._sent_at.popleft()

    def _read_acks(self) -> None:
        self._socket.settimeout(0)
        while self._sent_at and self._read_ack():
            pass

    def _wait_for_ack(self) -> bool:
        self._socket.settimeout(self._ack_timeout_s)
        return self._read_ack()

    def _read_ack(self) -> bool:
        try:
            ack = self._socket.recv(_COUNT_BYTES)
        except (TimeoutError, BlockingIOError):
            return False
        self._silent_since = None
        for _ in range(min(int.from_bytes(ack, "little"), len(self._sent_at))):
            self._sent_at.popleft()
        return True


class AckSender:
    """Acknowledges handled chunks, in postprocess. Not thread-safe."""

    def __init__(self) -> None:
        self._socket = _socket()
        self._socket.setblocking(False)

    def send(self, addresses: Iterable[str]) -> None:
        """Acknowledges one handled chunk for each item of `addresses`; an address may be repeated."""
        for address, count in Counter(addresses).items():
            # Decode has ended, reads slowly, or the address is invalid: decode does not wait forever.
            with contextlib.suppress(OSError, ValueError):
                self._socket.sendto(count.to_bytes(_COUNT_BYTES, "little"), _abstract(address))

    def close(self) -> None:
        self._socket.close()


def _socket() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)


def _abstract(address: str) -> str:
    """Returns the address in Linux's abstract namespace, which leaves no file after a crash."""
    return f"\0{address}"
