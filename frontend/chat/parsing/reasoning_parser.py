"""The parser of a whole answer: reasoning first, then content and calls of functions."""

from __future__ import annotations

from collections.abc import Sequence

from frontend.chat.parsing.answer_parser import AnswerParser, ContentDelta, Delta, ReasoningDelta
from frontend.chat.parsing.reasoning import ReasoningSplitter
from llm_pipeline.protocol.messages import FinishReason


class ReasoningAnswerParser:
    """Passes the text after the reasoning to the parser of the answer, or returns it as content if there is none."""

    def __init__(self, splitter: ReasoningSplitter, answer: AnswerParser | None) -> None:
        self._splitter = splitter
        self._answer = answer

    @property
    def has_complete_call(self) -> bool:
        """Whether the answer has calls and the last one is complete."""
        return self._answer is not None and self._answer.has_complete_call

    def feed(self, text: str) -> Sequence[Delta]:
        """Returns what is certain after the next piece of text."""
        return self._deltas(*self._splitter.feed(text))

    def finish(self, finish_reason: FinishReason) -> Sequence[Delta]:
        """Returns the rest."""
        deltas = self._deltas(*self._splitter.finish())
        return [*deltas, *self._answer.finish(finish_reason)] if self._answer is not None else deltas

    def _deltas(self, reasoning: str, answer: str) -> list[Delta]:
        deltas: list[Delta] = [ReasoningDelta(reasoning)] if reasoning else []
        if answer:
            deltas += [ContentDelta(answer)] if self._answer is None else self._answer.feed(answer)
        return deltas
