"""What came out of one request: the text as it arrives, and how long it took."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Report:
    """Watches the answers of one request go by. Times are seconds of the monotonic clock."""

    started_s: float = field(default_factory=time.monotonic)
    first_s: float | None = None
    last_s: float | None = None
    usage: dict[str, int] | None = None
    finishes: dict[int, str] = field(default_factory=dict)  # by choice
    _is_stream: bool = True

    def watch(self, answers: Iterator[dict[str, Any]], *, is_stream: bool) -> Iterator[dict[str, Any]]:
        """The same answers, noted on their way."""
        self._is_stream = is_stream
        for answer in answers:
            self._note(answer)
            yield answer

    def _note(self, answer: dict[str, Any]) -> None:
        self.last_s = time.monotonic()
        if self.first_s is None:
            self.first_s = self.last_s
        self.usage = answer.get("usage") or self.usage
        for choice in answer["choices"]:
            if choice.get("finish_reason"):
                self.finishes[choice["index"]] = choice["finish_reason"]

    def line(self, *, was_stopped: bool = False) -> str:
        """One line for people: time to first token, tokens, their rate, why it ended."""
        parts = []
        if self.first_s is not None and self._is_stream:
            parts.append(f"first token {_duration(self.first_s - self.started_s)}")
        parts.append(self._tokens((self.last_s or time.monotonic()) - self.started_s))
        rate = self._rate()
        if rate is not None:
            parts.append(f"{rate:.1f} tokens/s")
        parts.append("stopped" if was_stopped else " ".join(dict.fromkeys(self.finishes.values())) or "no end")
        return " · ".join(parts)

    def _tokens(self, total_s: float) -> str:
        if self.usage is None:
            return _duration(total_s)
        return f"{self.usage['prompt_tokens']} + {self.usage['completion_tokens']} tokens in {_duration(total_s)}"

    def _rate(self) -> float | None:
        """Tokens a second: of a stream from its first token on, else over the whole time."""
        if self.usage is None or self.first_s is None or self.last_s is None:
            return None
        tokens = self.usage["completion_tokens"]
        # A token comes with the first arrival for each choice; what it took is the time to first token.
        tokens, since_s = (tokens - len(self.finishes), self.first_s) if self._is_stream else (tokens, self.started_s)
        return tokens / (self.last_s - since_s) if tokens > 0 and self.last_s > since_s else None


class TextWriter:
    """Writes the text of the choices one behind the other, though a stream interleaves them.

    The first choice is written as it comes; the others wait, each for the end of the one before it.
    """

    def __init__(self, write: Callable[[str], None], *, separator: str) -> None:
        self._write = write
        self._separator = separator
        self._held: dict[int, list[str]] = {}
        self._finished: set[int] = set()
        self._current = 0

    def add(self, choice: dict[str, Any]) -> None:
        """One choice of a chunk, or of a whole answer."""
        index = choice["index"]
        if choice["text"]:
            self._held.setdefault(index, []).append(choice["text"])
        if choice.get("finish_reason"):
            self._finished.add(index)
        self._release()

    def close(self) -> None:
        """Writes what is held: the request is over, for whatever reason."""
        for index in sorted(self._held):
            if self._held[index]:
                self._move_to(index)
                self._flush()

    def _release(self) -> None:
        self._flush()
        while self._current in self._finished and (
            self._current + 1 in self._held or self._current + 1 in self._finished
        ):
            self._move_to(self._current + 1)
            self._flush()

    def _move_to(self, index: int) -> None:
        if index != self._current:
            self._write(self._separator)
            self._current = index

    def _flush(self) -> None:
        held = self._held.pop(self._current, None)
        if held:
            self._write("".join(held))


def _duration(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"
