"""What the command line writes: the text of interleaved choices in order, and one line of timing."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from complete_cli.report import Report, TextWriter


def choice(index: int, text: str, reason: str | None = None) -> dict[str, Any]:
    return {"index": index, "text": text, "finish_reason": reason}


def written(choices: list[dict[str, Any]], *, closes: bool = True) -> str:
    parts: list[str] = []
    writer = TextWriter(parts.append, separator="|")
    for each in choices:
        writer.add(each)
    if closes:
        writer.close()
    return "".join(parts)


def test_the_first_choice_is_written_as_it_comes() -> None:
    assert written([choice(0, "a"), choice(1, "x"), choice(0, "b")], closes=False) == "ab"


def test_the_next_choice_follows_when_the_one_before_it_has_ended() -> None:
    assert written([choice(0, "a"), choice(1, "x"), choice(0, "b", "stop")], closes=False) == "ab|x"


def test_what_is_held_is_written_at_the_end() -> None:
    assert written([choice(0, "a"), choice(1, "x")]) == "a|x"


@given(st.data())
def test_every_interleaving_gives_the_texts_in_order(data: st.DataObject) -> None:
    texts = data.draw(st.lists(st.lists(st.text("ab\n", max_size=2), min_size=1, max_size=4), min_size=1, max_size=4))
    left = {index: list(parts) for index, parts in enumerate(texts)}
    found = []
    while left:
        index = data.draw(st.sampled_from(sorted(left)))
        text = left[index].pop(0)
        found.append(choice(index, text, None if left[index] else "stop"))
        if not left[index]:
            del left[index]
    assert written(found) == "|".join("".join(parts) for parts in texts)


@pytest.mark.parametrize("is_stream", [True, False])
def test_the_line_of_timing(is_stream: bool) -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 5}
    report = Report()
    answers = [{"choices": [choice(0, "a", "length")]}, {"choices": [], "usage": usage}]
    assert list(report.watch(iter(answers), is_stream=is_stream)) == answers
    line = report.line()
    assert ("first token" in line) == is_stream
    assert "3 + 5 tokens in" in line
    assert line.endswith("length")


def test_the_rate_of_a_stream_starts_at_its_first_token() -> None:
    report = Report(started_s=0.0, first_s=10.0, last_s=12.0, usage={"prompt_tokens": 1, "completion_tokens": 5})
    report.finishes[0] = "stop"
    assert "2.0 tokens/s" in report.line()


def test_a_request_that_was_stopped_says_so() -> None:
    assert Report().line(was_stopped=True).endswith("stopped")
