"""Reasoning before an answer is separated from it, in any pieces."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontend.chat.parsing.reasoning import (
    MARKERS,
    ReasoningMarkers,
    ReasoningSplitter,
    ends_in_reasoning,
    markers_of,
)
from frontend.chat.parsing.reasoning_parser import ReasoningAnswerParser
from tests.support.chat_answers import Answer, call_parser, pieces_of, read

_THINK = MARKERS[0]

# text, begins within reasoning, reasoning, content
CASES = [
    ("<think>\nHm.\n\nYes.\n</think>\n\nHello.", False, "Hm.\n\nYes.", "Hello."),
    ("\n<think>a</think>b", False, "a", "b"),
    ("<think></think>b", False, "", "b"),
    ("Hello <think>a</think>", False, "", "Hello <think>a</think>"),
    ("<thin", False, "", "<thin"),
    ("", False, "", ""),
    ("  ", False, "", "  "),
    ("a\n</think>\n\nb", True, "a", "b"),
    ("a\n\nb\n", True, "a\n\nb", ""),
    ("a </thin", True, "a </thin", ""),
    ("</think>", True, "", ""),
    ("<think>a</think>b</think>c", False, "a", "b</think>c"),
]


@pytest.mark.parametrize("markers", MARKERS, ids=lambda markers: markers.start)
@pytest.mark.parametrize(("text", "is_inside", "reasoning", "content"), CASES)
@given(data=st.data())
def test_reasoning_is_separated(
    markers: ReasoningMarkers, text: str, is_inside: bool, reasoning: str, content: str, data: st.DataObject
) -> None:
    def in_dialect(sample: str) -> str:
        cut = sample.replace("</thin", markers.end[:-2]).replace("<thin", markers.start[:-2])
        whole = sample.replace(_THINK.end, markers.end).replace(_THINK.start, markers.start)
        return whole if _THINK.start in sample or _THINK.end in sample else cut

    parser = ReasoningAnswerParser(ReasoningSplitter(markers, is_inside=is_inside), None)
    answer = read(parser, data.draw(pieces_of(in_dialect(text))))
    assert answer == Answer(in_dialect(content), reasoning=in_dialect(reasoning))


@given(data=st.data())
def test_calls_are_found_after_reasoning_and_not_in_it(data: st.DataObject) -> None:
    call = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
    parser = ReasoningAnswerParser(ReasoningSplitter(_THINK, is_inside=False), call_parser("hermes"))
    answer = read(parser, data.draw(pieces_of(f"<think>\nI could write {call}.\n</think>\n\n{call}")))
    assert answer == Answer("", (("id0", "f", "{}"),), has_complete_call=True, reasoning=f"I could write {call}.")


def test_markers_come_from_the_template() -> None:
    assert markers_of(["{{ messages }}"]) is None
    assert markers_of(["{{ messages }}", "{% if '</think>' in content %}"]) == _THINK


def test_a_prompt_may_end_in_reasoning() -> None:
    assert ends_in_reasoning("<|im_start|>assistant\n<think>\n", _THINK)
    assert not ends_in_reasoning("<|im_start|>assistant\n<think>\n\n</think>\n\n", _THINK)
