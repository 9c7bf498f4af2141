"""Text of one request as it arrives, and its timing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

_FEWEST_TOKENS = 10  # tokens arrive in bursts, so the rate of a few is noise


@dataclass
class Report:
    """Records arrival times, usage and finish reasons of one response. Times are seconds of the monotonic clock."""

    started_s: float = field(default_factory=time.monotonic)
    first_s: float | None = None
    last_s: float | None = None
    usage: dict[str, int] | None = None
    finish_reasons: dict[int, str] = field(default_factory=dict)  # by choice
    _is_stream: bool = True

    def watch(self, chunks: Iterator[dict[str, Any]], *, is_stream: bool) -> Iterator[dict[str, Any]]:
        """Yields the chunks unchanged, and records each."""
        self._is_stream = is_stream
        for chunk in chunks:
            self._record(chunk)
            yield chunk

    def _record(self, chunk: dict[str, Any]) -> None:
        self.last_s = time.monotonic()
        if self.first_s is None:
            self.first_s = self.last_s
        self.usage = chunk.get("usage") or self.usage
        for choice in chunk["choices"]:
            if choice.get("finish_reason"):
                self.finish_reasons[choice["index"]] = choice["finish_reason"]

    def line(self, *, was_cancelled: bool = False) -> str:
        """Returns one line: time to first token, number of tokens, tokens per second, finish reasons."""
        parts = []
        if self.first_s is not None and self._is_stream:
            parts.append(f"first token {_duration(self.first_s - self.started_s)}")
        parts.append(self._tokens((self.last_s or time.monotonic()) - self.started_s))
        rate = self._rate()
        if rate is not None:
            parts.append(f"{rate:.1f} tokens/s")
        reasons = " ".join(dict.fromkeys(self.finish_reasons.values())) or "no finish reason"
        parts.append("cancelled" if was_cancelled else reasons)
        return " · ".join(parts)

    def _tokens(self, total_s: float) -> str:
        if self.usage is None:
            return _duration(total_s)
        return f"{self.usage['prompt_tokens']} + {self.usage['completion_tokens']} tokens in {_duration(total_s)}"

    def _rate(self) -> float | None:
        """Returns tokens per second: for a stream, from its first token on; otherwise over the whole time.

        None for few tokens.
        """
        if self.usage is None or self.first_s is None or self.last_s is None:
            return None
        tokens = self.usage["completion_tokens"]
        # The first chunk brings a token of each choice, whose cost is the time to first token.
        tokens, since_s = (
            (tokens - len(self.finish_reasons), self.first_s) if self._is_stream else (tokens, self.started_s)
        )
        return tokens / (self.last_s - since_s) if tokens >= _FEWEST_TOKENS and self.last_s > since_s else None


class TextWriter:
    """Writes the text of the choices one after another, although a stream interleaves them.

    The first choice is written as it arrives. Each of the others is buffered until the one before it has ended.
    """

    def __init__(self, write: Callable[[str], None], *, separator: str) -> None:
        self._write = write
        self._separator = separator
        self._buffered: dict[int, list[str]] = {}
        self._finished: set[int] = set()
        self._current = 0

    def add(self, choice: dict[str, Any]) -> None:
        """Takes one choice of a chunk or of a whole response."""
        index = choice["index"]
        if choice["text"]:
            self._buffered.setdefault(index, []).append(choice["text"])
        if choice.get("finish_reason"):
            self._finished.add(index)
        self._write_finished()

    def close(self) -> None:
        """Writes the buffered text. Call it when the request is over, for any reason."""
        for index in sorted(self._buffered):
            if self._buffered[index]:
                self._move_to(index)
                self._flush()

    def _write_finished(self) -> None:
        self._flush()
        while self._current in self._finished and (
            self._current + 1 in self._buffered or self._current + 1 in self._finished
        ):
            self._move_to(self._current + 1)
            self._flush()

    def _move_to(self, index: int) -> None:
        if index != self._current:
            self._write(self._separator)
            self._current = index

    def _flush(self) -> None:
        texts = self._buffered.pop(self._current, None)
        if texts:
            self._write("".join(texts))


def _duration(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"
