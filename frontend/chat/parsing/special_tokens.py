"""Removes special tokens from text that has them for the sake of markers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from frontend.chat.parsing.answer_parser import AnswerParser, Delta
from llm_pipeline.protocol.messages import FinishReason


@dataclass(frozen=True)
class HiddenTokens:
    """The texts of tokens to remove, and the characters that they begin with."""

    texts: tuple[str, ...]
    first: frozenset[str]


@lru_cache(maxsize=64)
def without_special_tokens(special_tokens: tuple[str, ...], markers: frozenset[str]) -> HiddenTokens:
    """All special tokens but the markers: up to a thousand, and the same for each request to a model."""
    texts = tuple(token for token in special_tokens if token and token not in markers)
    return HiddenTokens(texts, frozenset(text[0] for text in texts))


class SpecialTokenFilter:
    """Passes text without special tokens on to a parser.

    A chunk has whole tokens, unless a stop string holds text back in the middle of one, which then stays.
    """

    def __init__(self, parser: AnswerParser, hidden: HiddenTokens) -> None:
        self._parser = parser
        self._hidden = hidden

    @property
    def has_complete_call(self) -> bool:
        """Whether there are calls and the last one is complete."""
        return self._parser.has_complete_call

    def feed(self, text: str) -> Sequence[Delta]:
        """Returns what is certain after the next piece of text."""
        if not self._hidden.first.isdisjoint(text):
            for token in self._hidden.texts:
                text = text.replace(token, "")
        return self._parser.feed(text) if text else ()

    def finish(self, finish_reason: FinishReason) -> Sequence[Delta]:
        """Returns the rest."""
        return self._parser.finish(finish_reason)
