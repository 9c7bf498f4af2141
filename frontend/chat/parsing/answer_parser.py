"""The port of the parsers that split an answer's text into content, reasoning and tool calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from llm_pipeline.protocol.messages import FinishReason, Guide


@dataclass(frozen=True)
class ContentDelta:
    """More of the content."""

    text: str


@dataclass(frozen=True)
class ReasoningDelta:
    """More of the reasoning."""

    text: str


@dataclass(frozen=True)
class ToolCallStart:
    """A tool call begins. `index` counts the calls of one answer from 0."""

    index: int
    call_id: str
    name: str


@dataclass(frozen=True)
class ToolCallArguments:
    """More of a call's arguments, which are JSON when the call is complete."""

    index: int
    text: str


Delta: TypeAlias = ContentDelta | ReasoningDelta | ToolCallStart | ToolCallArguments


class AnswerParser(Protocol):
    """Reads the text of one choice. It may hold back text that could be the beginning of a marker."""

    @property
    def has_complete_call(self) -> bool:
        """Whether a tool call has been read to its end."""

    def feed(self, text: str) -> Sequence[Delta]:
        """Reads more text, and returns what it is."""

    def finish(self, finish_reason: FinishReason) -> Sequence[Delta]:
        """The text has ended: returns what was held back."""


@dataclass(frozen=True)
class AnswerPlan:
    """The way to read the answer to one request, and the guide that makes it readable.

    `new_parser` makes the parser of one choice; None: the whole text is content. `guide` includes the client's own one;
    `guide_param` is the request field that requires it. `needs_special_tokens`: some markers are special tokens, which
    the text must have for the parser; it removes the others.
    """

    new_parser: Callable[[], AnswerParser] | None = None
    guide: Guide | None = None
    guide_param: str = "tools"
    needs_special_tokens: bool = False


PLAIN_TEXT = AnswerPlan()
"""The plan of an answer that is all content."""
