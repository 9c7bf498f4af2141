"""OpenAI's `logprobs` object, piece by piece: tokens, their log probs, the most likely ones, and where each begins.

A token is listed when text of it is, so that pieces of a stream add up and nothing is listed behind a stop string.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import orjson

from llm_pipeline.protocol.messages import TopLogprobs


class _Entry(NamedTuple):
    token: str
    log_prob: float | None
    top: dict[str, float] | None
    offset: int  # in characters, from the beginning of the choice's text


class OpenAiLogprobs:
    """The tokens of one choice. `names` says how a token is written."""

    def __init__(self, names: Mapping[int, str]) -> None:
        self._names = names
        self._waiting: deque[_Entry] = deque()
        self._offset = 0

    def add(
        self,
        token_ids: Sequence[int],
        widths: Sequence[int],
        log_probs: Sequence[float | None],
        tops: Sequence[TopLogprobs],
    ) -> None:
        """The next tokens: how many characters of the text each completed, and its log probs (`tops` may be empty)."""
        for index, (token_id, width, value) in enumerate(zip(token_ids, widths, log_probs, strict=True)):
            top = self._top(token_id, value, tops[index] if tops else ((), ()))
            self._waiting.append(_Entry(self._names[token_id], value, top, self._offset))
            self._offset += width

    def _top(self, token_id: int, value: float | None, top: TopLogprobs) -> dict[str, float] | None:
        """The most likely tokens, and the token itself if it is none of them. Of equal names the likelier one stays."""
        if value is None:
            return None
        found: dict[str, float] = {}
        for other_id, log_prob in zip(*top, strict=True):
            found.setdefault(self._names[other_id], log_prob)
        if token_id not in top[0]:
            found.setdefault(self._names[token_id], value)
        return found

    def take_until(self, offset: int) -> bytes:
        """JSON of the tokens that begin in front of this place and were not taken yet."""
        count = 0
        for entry in self._waiting:
            if entry.offset >= offset:
                break
            count += 1
        return self.take(count)

    def take_all(self) -> bytes:
        return self.take(len(self._waiting))

    def take(self, count: int) -> bytes:
        """JSON of the next `count` tokens."""
        entries = [self._waiting.popleft() for _ in range(count)]
        return orjson.dumps(
            {
                "tokens": [entry.token for entry in entries],
                "token_logprobs": [entry.log_prob for entry in entries],
                "top_logprobs": [entry.top for entry in entries],
                "text_offset": [entry.offset for entry in entries],
            }
        )


def joined(pieces: Sequence[bytes]) -> bytes:
    """JSON of pieces that follow each other, as one piece."""
    whole: dict[str, list[object]] = {}
    for piece in pieces:
        for name, values in orjson.loads(piece).items():
            whole.setdefault(name, []).extend(values)
    return orjson.dumps(whole)
