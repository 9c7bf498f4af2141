"""Runs an answer parser over a text in pieces, and puts the deltas together as a client does."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hypothesis import strategies as st

from frontend.chat.parsing.answer_parser import (
    AnswerParser,
    ContentDelta,
    Delta,
    ReasoningDelta,
    ToolCallStart,
)
from frontend.chat.parsing.tool_calls import ToolCallParser
from frontend.chat.tools.formats import FORMATS
from llm_pipeline.protocol.messages import FinishReason

FORMATS_BY_NAME = {tool_format.name: tool_format for tool_format in FORMATS}
NAMES = ("get_weather", "f")


@dataclass(frozen=True)
class Answer:
    """What a client has at the end. `calls` are ids, names and arguments."""

    content: str
    calls: tuple[tuple[str, str, str], ...] = ()
    has_complete_call: bool = False
    reasoning: str = ""


def call_parser(tool_format: str, *, only_one: bool = False, names: Sequence[str] = NAMES) -> ToolCallParser:
    """A parser that numbers the ids of calls."""
    numbers = itertools.count()
    return ToolCallParser(
        FORMATS_BY_NAME[tool_format], frozenset(names), lambda: f"id{next(numbers)}", only_one=only_one
    )


def read(parser: AnswerParser, pieces: Iterable[str]) -> Answer:
    """The answer of a client that adds up all deltas."""
    deltas: list[Delta] = []
    for piece in pieces:
        deltas += parser.feed(piece)
    deltas += parser.finish(FinishReason.STOP)
    calls: list[list[str]] = []
    for delta in deltas:
        if isinstance(delta, ToolCallStart):
            assert delta.index == len(calls)
            calls.append([delta.call_id, delta.name, ""])
        elif not isinstance(delta, ContentDelta | ReasoningDelta):
            assert delta.index == len(calls) - 1
            calls[-1][2] += delta.text
    assert all(isinstance(delta, ToolCallStart) or delta.text for delta in deltas)  # no empty events
    return Answer(
        "".join(delta.text for delta in deltas if isinstance(delta, ContentDelta)),
        tuple((call_id, name, arguments) for call_id, name, arguments in calls),
        parser.has_complete_call,
        "".join(delta.text for delta in deltas if isinstance(delta, ReasoningDelta)),
    )


@st.composite
def pieces_of(draw: st.DrawFn, text: str) -> list[str]:
    """The text in pieces of any length."""
    cuts = draw(st.sets(st.integers(0, len(text)), max_size=min(len(text), 40)))
    edges = [0, *sorted(cuts), len(text)]
    return [text[start:end] for start, end in itertools.pairwise(edges) if end > start]
