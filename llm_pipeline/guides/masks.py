"""The masks of guided requests: the client of a guide's process, which makes them, and the bytes between the two.

A request has one connection to the process of its guide (mask_server.py), and at most one unanswered question. All
numbers are little-endian. A question is two counts, u32, of accepted and of draft tokens, then these tokens, u32. An
answer is its kind, u8, and the length of the rest, u32. The rest is the rows of the mask, one bit for each token from
the lowest bit of the first byte, or the text of an error.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence
from enum import IntEnum

import numpy as np
import numpy.typing as npt

QUESTION_HEAD = struct.Struct("<II")
ANSWER_HEAD = struct.Struct("<BI")
_READ_BYTES = 1 << 18


class GuideError(Exception):
    """A guide can't be enforced: it is invalid, or beyond a limit of time, memory or size. The message gives the cause.

    The fault is the guide's: its request ends with a 400.
    """


class GuidesUnavailableError(Exception):
    """The server can't make masks now, which is not the guide's fault: its request ends with a 503."""


class AnswerKind(IntEnum):
    """The kinds of answers. If the connection ends without one, the process has exceeded a limit."""

    MASKS = 0
    ERROR = 1  # the guide can't be enforced any further
    CLOSED = 2  # the process was stopped


class MaskSource:
    """Gets the masks of one request from the process of its guide. Not thread-safe; it never blocks.

    `address` is the path of the process's socket (GenerationRequest.guide_address), `vocab_size` the length of the
    logits. Ask for the first mask as soon as the request is there, and for the next one as soon as its token is known.
    """

    def __init__(self, address: str, *, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._row_bytes = mask_bytes(vocab_size)
        self._received = bytearray()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.setblocking(False)
        self._failure: Exception | None = None
        try:
            self._socket.connect(address)
        except OSError:  # the process has ended; `receive` says so
            self._failure = process_ended()

    def fileno(self) -> int:
        """The descriptor that becomes readable when an answer has arrived, for a selector. -1 after `close`."""
        return self._socket.fileno()

    def ask(self, accepted: Sequence[int] = (), draft: Sequence[int] = ()) -> None:
        """Adds the accepted tokens to the text, and asks for the next mask and for the one after each draft token.

        The draft is not added to the text. Never raises: a failure is the answer.
        """
        question = QUESTION_HEAD.pack(len(accepted), len(draft)) + np.array([*accepted, *draft], "<u4").tobytes()
        try:
            sent = self._socket.send(question)
        except OSError:  # the process has ended; its answer, if any, is still to be read
            return
        if sent != len(question):  # a few hundred bytes in a buffer of 200 KB that was empty
            self._failure = process_ended()

    def receive(self) -> npt.NDArray[np.bool_] | None:
        """Returns the masks, bool [rows, vocab_size], or None if they have not arrived.

        The first row is the mask of the next token, and row n that of the token after n draft tokens. There is at least
        one row, and fewer than asked for if a draft token is not allowed or the masks take long: the draft ends there.

        Raises GuideError if the guide can't be enforced any further, and GuidesUnavailableError.
        """
        if self._failure is not None:
            raise self._failure
        body = self._read_answer()
        if body is None:
            return None
        bits = np.frombuffer(body, np.uint8).reshape(-1, self._row_bytes)
        return np.unpackbits(bits, axis=1, count=self._vocab_size, bitorder="little").view(np.bool_)

    def close(self) -> None:
        """Closes the connection, which frees the request's state in the process. May be called twice."""
        self._socket.close()

    def _read_answer(self) -> bytes | None:
        """Returns the next answer's masks as bytes; None if it is not complete yet."""
        received = self._received
        is_at_end = False
        while not is_at_end:
            try:
                data = self._socket.recv(_READ_BYTES)
            except BlockingIOError:
                break
            except OSError:
                data = b""
            received += data
            is_at_end = not data
        if len(received) >= ANSWER_HEAD.size:
            kind, length = ANSWER_HEAD.unpack_from(received)
            end = ANSWER_HEAD.size + length
            if len(received) >= end:
                body = bytes(received[ANSWER_HEAD.size : end])
                del received[:end]
                if kind == AnswerKind.MASKS:
                    return body
                self._failure = _failure(kind, body)
                raise self._failure
        if is_at_end:
            self._failure = process_ended()
            raise self._failure
        return None


def mask_bytes(vocab_size: int) -> int:
    """Returns the bytes of one row of a mask: whole words of 32 bits, as llguidance makes them."""
    return -(-vocab_size // 32) * 4


def process_ended() -> GuideError:
    """The error of a guide whose process has ended by itself: only a limit or a crash ends it while it has requests."""
    return GuideError(
        "computing the next tokens takes more time or memory than a guide may use. Simplify it, for example repeats "
        "within repeats, long alternatives or large numbers."
    )


def _failure(kind: int, body: bytes) -> Exception:
    if kind == AnswerKind.CLOSED:
        return GuidesUnavailableError("Structured output is restarting. Retry shortly.")
    return GuideError(body.decode(errors="replace"))
