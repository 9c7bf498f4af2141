"""The parts of a chat answer, and what finds them in the text of a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias


@dataclass(frozen=True)
class ContentDelta:
    """Text of the answer itself."""

    text: str


@dataclass(frozen=True)
class ReasoningDelta:
    """Text that the model wrote before its answer, for `reasoning_content`."""

    text: str


@dataclass(frozen=True)
class ToolCallStart:
    """A call of a function begins. `index` counts the calls of one answer from 0."""

    index: int
    call_id: str
    name: str


@dataclass(frozen=True)
class ToolCallArguments:
    """The next piece of the JSON text of a call's arguments. Pieces add up to the whole."""

    index: int
    text: str


Delta: TypeAlias = ContentDelta | ReasoningDelta | ToolCallStart | ToolCallArguments


class AnswerParser(Protocol):
    """Splits the text of one choice, as it arrives, into deltas."""

    def feed(self, text: str) -> Sequence[Delta]:
        """Returns what is certain after `text`, the next piece of the choice."""

    def finish(self) -> Sequence[Delta]:
        """Returns the rest. Called once, after the last piece."""

    @property
    def ends_in_tool_calls(self) -> bool:
        """Whether the answer has calls and the last one is complete. Then `stop` is reported as `tool_calls`."""
