"""Output of the command line: the text of interleaved choices in order, and one line of timing."""

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


def test_first_choice_is_written_as_it_arrives() -> None:
    assert written([choice(0, "a"), choice(1, "x"), choice(0, "b")], closes=False) == "ab"


def test_next_choice_follows_the_end_of_the_one_before() -> None:
    assert written([choice(0, "a"), choice(1, "x"), choice(0, "b", "stop")], closes=False) == "ab|x"


def test_close_writes_buffered_text() -> None:
    assert written([choice(0, "a"), choice(1, "x")]) == "a|x"


@given(st.data())
def test_any_interleaving_yields_the_texts_in_order(data: st.DataObject) -> None:
    texts = data.draw(st.lists(st.lists(st.text("ab\n", max_size=2), min_size=1, max_size=4), min_size=1, max_size=4))
    left = {index: list(parts) for index, parts in enumerate(texts)}
    choices = []
    while left:
        index = data.draw(st.sampled_from(sorted(left)))
        text = left[index].pop(0)
        choices.append(choice(index, text, None if left[index] else "stop"))
        if not left[index]:
            del left[index]
    assert written(choices) == "|".join("".join(parts) for parts in texts)


@pytest.mark.parametrize("is_stream", [True, False])
def test_timing_line_has_usage_and_finish_reason(is_stream: bool) -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 5}
    report = Report()
    chunks: list[dict[str, Any]] = [{"choices": [choice(0, "a", "length")]}, {"choices": [], "usage": usage}]
    assert list(report.watch(iter(chunks), is_stream=is_stream)) == chunks
    line = report.line()
    assert ("first token" in line) == is_stream
    assert "3 + 5 tokens in" in line
    assert line.endswith("length")


def test_rate_of_a_stream_is_measured_from_its_first_token() -> None:
    report = Report(started_s=0.0, first_s=10.0, last_s=12.0, usage={"prompt_tokens": 1, "completion_tokens": 21})
    report.finish_reasons[0] = "stop"
    assert "10.0 tokens/s" in report.line()


@pytest.mark.parametrize(("choices", "tokens"), [(1, 3), (1, 10), (2, 11)])
def test_rate_of_a_few_tokens_is_omitted(choices: int, tokens: int) -> None:
    """They come in one or two bursts, whose distance says nothing about the engine."""
    report = Report(started_s=0.0, first_s=1.0, last_s=1.01, usage={"prompt_tokens": 1, "completion_tokens": tokens})
    report.finish_reasons.update(dict.fromkeys(range(choices), "stop"))
    assert "tokens/s" not in report.line()


def test_cancelled_request_is_reported_as_cancelled() -> None:
    assert Report().line(was_cancelled=True).endswith("cancelled")
