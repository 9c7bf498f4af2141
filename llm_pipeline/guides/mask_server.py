"""Makes the masks of one compiled guide for any number of requests: the loop of a guide's process.

The questions and answers are in masks.py. The loop is single-threaded: a slow mask delays the other requests of this
guide and tenant, and no others. Its limits:

* An answer that takes more than `answer_cpu_s` of CPU time ends the process by SIGPROF. Nothing else stops native code.
* While the process uses more than its share of a core, it is moved to SCHED_IDLE, so that it runs only on cores that
  nothing else needs. It stays there.
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from llm_pipeline.guides.masks import ANSWER_HEAD, QUESTION_HEAD, AnswerKind, GuideError

_READ_BYTES = 1 << 16
_MAX_QUESTION_TOKENS = 1 << 16


@dataclass(frozen=True)
class MaskLimits:
    """Limits of the computing for masks, in seconds. `answer_cpu_s` 0 is unlimited."""

    answer_cpu_s: float = 1.0
    draft_s: float = 0.01  # an answer that takes longer has no further rows for draft tokens
    share_of_core: float = 0.05  # of CPU time for each connection, on average
    burst_s: float = 0.25  # of CPU time above that share


class MaskMaker(Protocol):
    """The part of ConstraintMatcher that makes masks."""

    def copy(self) -> MaskMaker:
        """Returns another text under the same guide, as far as this one is."""

    def advance(self, token_ids: Sequence[int]) -> None:
        """Adds tokens to the text."""

    def masks(self, draft: Sequence[int], is_late: Callable[[], bool]) -> Sequence[bytes]:
        """Returns the mask of the next token and of the one after each draft token. Raises GuideError."""


@dataclass
class _Connection:
    """One request: its text, and the bytes on their way."""

    socket: socket.socket
    maker: MaskMaker
    received: bytearray = field(default_factory=bytearray)
    to_send: memoryview = field(default_factory=lambda: memoryview(b""))
    is_blocked: bool = False  # the client's buffer is full


class MaskServer:
    """Serves the masks of one guide on a listening Unix socket, until `stop` is readable."""

    def __init__(
        self, maker: MaskMaker, listener: socket.socket, stop: socket.socket, limits: MaskLimits = MaskLimits()
    ) -> None:
        self._maker = maker
        self._listener = listener
        self._limits = limits
        self._connections: dict[int, _Connection] = {}
        self._spare_s = limits.burst_s
        self._refilled_at = time.monotonic()
        self._is_idle_class = False
        self._selector = selectors.DefaultSelector()
        self._listener.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ, self._accept)
        self._selector.register(stop, selectors.EVENT_READ, None)

    def run(self) -> None:
        """Answers questions until `stop` is readable, and closes the connections."""
        is_running = True
        while is_running:
            for key, _ in self._selector.select():
                if key.data is None:
                    is_running = False
                else:
                    key.data()
        for connection in list(self._connections.values()):
            if not connection.to_send:
                with suppress(OSError):
                    connection.socket.send(ANSWER_HEAD.pack(AnswerKind.CLOSED, 0))
            self._close(connection)
        self._selector.close()

    def _accept(self) -> None:
        with suppress(OSError):  # the client is gone, or there is no descriptor left
            accepted, _ = self._listener.accept()
            accepted.setblocking(False)
            connection = _Connection(accepted, self._maker.copy())
            self._connections[accepted.fileno()] = connection
            self._selector.register(accepted, selectors.EVENT_READ, lambda: self._read(connection))

    def _read(self, connection: _Connection) -> None:
        try:
            data = connection.socket.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        connection.received += data
        if data:
            self._answer(connection)
        else:
            self._close(connection)

    def _answer(self, connection: _Connection) -> None:
        """Answers the question that has arrived, if it is complete."""
        received = connection.received
        if len(received) < QUESTION_HEAD.size or connection.to_send:
            return
        accepted_count, draft_count = QUESTION_HEAD.unpack_from(received)
        end = QUESTION_HEAD.size + 4 * (accepted_count + draft_count)
        if accepted_count + draft_count > _MAX_QUESTION_TOKENS:
            self._close(connection)
        elif len(received) >= end:
            token_ids: list[int] = np.frombuffer(bytes(received[QUESTION_HEAD.size : end]), "<u4").tolist()
            del received[:end]
            answer = self._make(connection.maker, token_ids[:accepted_count], token_ids[accepted_count:])
            connection.to_send = memoryview(answer)
            self._send(connection)

    def _make(self, maker: MaskMaker, accepted: Sequence[int], draft: Sequence[int]) -> bytes:
        draft_deadline = time.monotonic() + self._limits.draft_s
        used_before_s = time.process_time()
        if self._limits.answer_cpu_s:
            signal.setitimer(signal.ITIMER_PROF, self._limits.answer_cpu_s)
        try:
            maker.advance(accepted)
            rows = maker.masks(draft, lambda: time.monotonic() > draft_deadline)
        except GuideError as error:
            text = str(error).encode()
            return ANSWER_HEAD.pack(AnswerKind.ERROR, len(text)) + text
        finally:
            if self._limits.answer_cpu_s:
                signal.setitimer(signal.ITIMER_PROF, 0)
            self._charge(time.process_time() - used_before_s)
        return ANSWER_HEAD.pack(AnswerKind.MASKS, sum(map(len, rows))) + b"".join(rows)

    def _charge(self, cpu_s: float) -> None:
        """Counts CPU time; beyond the share, the process runs only on cores that are free."""
        now = time.monotonic()
        refill_s = (now - self._refilled_at) * self._limits.share_of_core * len(self._connections)
        self._refilled_at = now
        self._spare_s = min(self._spare_s + refill_s, self._limits.burst_s) - cpu_s
        if self._spare_s < 0 and not self._is_idle_class:
            self._is_idle_class = True
            with suppress(OSError):  # not allowed in this container: it stays at its nice value
                os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))

    def _send(self, connection: _Connection) -> None:
        try:
            sent = connection.socket.send(connection.to_send)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._close(connection)
            return
        connection.to_send = connection.to_send[sent:]
        if connection.to_send:
            connection.is_blocked = True
            self._selector.modify(connection.socket, selectors.EVENT_WRITE, lambda: self._send(connection))
        elif connection.is_blocked:
            connection.is_blocked = False
            self._selector.modify(connection.socket, selectors.EVENT_READ, lambda: self._read(connection))

    def _close(self, connection: _Connection) -> None:
        del self._connections[connection.socket.fileno()]
        self._selector.unregister(connection.socket)
        connection.socket.close()


def pack_row(bits: bytes, row_bytes: int) -> bytes:
    """Returns a row of llguidance, which may have a further word, in the length that clients expect."""
    return bits[:row_bytes].ljust(row_bytes, b"\0")
