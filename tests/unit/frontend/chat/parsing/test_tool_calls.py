"""Calls are found in text of any pieces, and what is not a call stays text."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontend.chat.tools.formats import ToolFormat
from tests.support.chat_answers import FORMATS_BY_NAME, NAMES, Answer, call_parser, pieces_of, read

_CALL = '{"name": "f", "arguments": {"a": "x}\\"<tool_call>", "b": [1, {"c": 2}]}}'
_ARGUMENTS = '{"a": "x}\\"<tool_call>", "b": [1, {"c": 2}]}'
_HERMES = f"<tool_call>\n{_CALL}\n</tool_call>"

# format, text, content, calls
CASES: list[tuple[str, str, str, list[tuple[str, str]]]] = [
    ("hermes", "plain text  ", "plain text  ", []),
    ("hermes", "", "", []),
    ("hermes", " \n", " \n", []),
    ("hermes", f"Let me see.\n\n{_HERMES}", "Let me see.", [("f", _ARGUMENTS)]),
    ("hermes", f"{_HERMES}\n{_HERMES} done", " done", [("f", _ARGUMENTS)] * 2),
    ("hermes", f"{_HERMES}{_HERMES}\n", "", [("f", _ARGUMENTS)] * 2),
    ("hermes", f"<tool_call>{_CALL}", "", [("f", _ARGUMENTS)]),  # the end marker is missing
    ("hermes", f"<tool_call>{_CALL} and text", "and text", [("f", _ARGUMENTS)]),
    ("hermes", '<tool_call>{"name": "zzz", "arguments": {}}</tool_call>', None, []),  # type: ignore[list-item]
    ("hermes", "<tool_call>sunny</tool_call>", None, []),  # type: ignore[list-item]
    ("hermes", '<tool_call>{"name": "f", "arguments": 5}</tool_call>', None, []),  # type: ignore[list-item]
    ("hermes", '<tool_call>{"city": "f"}</tool_call>', None, []),  # type: ignore[list-item]
    ("hermes", f"<tool_call> {_HERMES}", "<tool_call>", [("f", _ARGUMENTS)]),
    ("hermes", '<tool_call>{"arguments": {"q": 1}, "name": "f"}</tool_call>', "", [("f", '{"q": 1}')]),
    ("hermes", '<tool_call>{"name":"f"}</tool_call>', "", [("f", "{}")]),
    ("hermes", '<tool_call>{"name":"f","arguments":null}</tool_call>', "", [("f", "{}")]),
    ("hermes", '<tool_call>{"name":"f","arguments":"{\\"a\\": 1}"}</tool_call>', "", [("f", '{"a": 1}')]),
    ("hermes", "a < b <tool_cal", "a < b <tool_cal", []),
    (
        "mistral",
        '[TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}}, {"name": "get_weather", "arguments": {}}]',
        "",
        [("f", '{"a": 1}'), ("get_weather", "{}")],
    ),
    ("mistral", '[TOOL_CALLS]{"name": "f", "arguments": {"a": 1}} x', "x", [("f", '{"a": 1}')]),
    ("mistral", "a [list] of words", "a [list] of words", []),
    (
        "mistral_args",
        'Hi [TOOL_CALLS]f[ARGS]{"a": {"b":1}}[TOOL_CALLS]get_weather[ARGS]{}',
        "Hi",
        [("f", '{"a": {"b":1}}'), ("get_weather", "{}")],
    ),
    ("mistral_args", '[TOOL_CALLS]zzz[ARGS]{"a": 1}', None, []),  # type: ignore[list-item]
    ("mistral_args", f"[TOOL_CALLS]{'z' * 400}", None, []),  # type: ignore[list-item]
    (
        "llama3",
        '{"name": "f", "parameters": {"a": 1}}; {"name": "f", "parameters": {"a": 2}}',
        "",
        [("f", '{"a": 1}'), ("f", '{"a": 2}')],
    ),
    ("llama3", '{"type": "function", "name": "f", "parameters": {}}', "", [("f", "{}")]),
    ("llama3", '{"a": 1, "name": 2}', '{"a": 1, "name": 2}', []),
    ("generic", '[{"name": "f", "arguments": {"a": 1}}]', "", [("f", '{"a": 1}')]),
    (
        "generic",
        '{"name": "f", "arguments": {}}\n{"name": "f", "arguments": {"b": []}}',
        "",
        [("f", "{}"), ("f", '{"b": []}')],
    ),
    ("generic", 'Hello {"name": "f", "arguments": {}}', 'Hello {"name": "f", "arguments": {}}', []),
    ("generic", "[1,2] is a list", "[1,2] is a list", []),
    ("generic", "   ", "   ", []),
]


@pytest.mark.parametrize(("tool_format", "text", "content", "calls"), CASES)
@given(data=st.data())
def test_calls_are_found_in_any_pieces(
    tool_format: str, text: str, content: str | None, calls: list[tuple[str, str]], data: st.DataObject
) -> None:
    answer = read(call_parser(tool_format), data.draw(pieces_of(text)))
    expected = tuple((f"id{index}", *call) for index, call in enumerate(calls))
    assert answer == Answer(text if content is None else content, expected, bool(calls))


@pytest.mark.parametrize(
    ("text", "content", "arguments"),
    [
        (f"<tool_call>{_CALL[:-10]}", "", _ARGUMENTS[:-9]),
        ('<tool_call>{"name": "f", "arguments": {"a": 1}', "", '{"a": 1}'),
        ('<tool_call>{"name": "get_wea', '<tool_call>{"name": "get_wea', None),
        ("<tool_call>\n", "<tool_call>\n", None),
    ],
)
@given(data=st.data())
def test_a_call_that_is_cut_keeps_what_was_written(
    text: str, content: str, arguments: str | None, data: st.DataObject
) -> None:
    answer = read(call_parser("hermes"), data.draw(pieces_of(text)))
    calls = () if arguments is None else (("id0", "f", arguments),)
    assert answer == Answer(content, calls, has_complete_call=False)


def test_arguments_are_returned_as_they_arrive() -> None:
    parser = call_parser("hermes")
    for piece in ("<tool_call>", '{"name": "f", "arguments": '):
        assert not parser.feed(piece)
    assert [type(delta).__name__ for delta in parser.feed('{"city": "Par')] == ["ToolCallStart", "ToolCallArguments"]
    assert [delta.text for delta in parser.feed('is"') if hasattr(delta, "text")] == ['is"']


def test_with_only_one_what_follows_the_first_call_is_dropped() -> None:
    answer = read(call_parser("hermes", only_one=True), [f"Hi {_HERMES}\n{_HERMES} done"])
    assert answer == Answer("Hi", (("id0", "f", _ARGUMENTS),), has_complete_call=True)


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
_CALLS = st.lists(
    st.tuples(st.sampled_from(NAMES), st.dictionaries(st.text(max_size=8), _VALUES, max_size=3)), min_size=1, max_size=3
)


def written(tool_format: ToolFormat, calls: list[tuple[str, dict[str, Any]]], *, ascii_only: bool) -> str:
    """The calls as a model writes them."""
    parts = [
        tool_format.before_arguments(name)
        + json.dumps(arguments, ensure_ascii=ascii_only)
        + tool_format.after_arguments
        for name, arguments in calls
    ]
    if tool_format.is_list:
        return f"{tool_format.start} [{tool_format.separator.join(parts)}]"
    return tool_format.separator.join(tool_format.start + part for part in parts)


@pytest.mark.parametrize("name", FORMATS_BY_NAME)
@given(calls=_CALLS, ascii_only=st.booleans(), data=st.data())
def test_what_a_model_writes_comes_back(
    name: str, calls: list[tuple[str, dict[str, Any]]], ascii_only: bool, data: st.DataObject
) -> None:
    text = written(FORMATS_BY_NAME[name], calls, ascii_only=ascii_only)
    answer = read(call_parser(name), data.draw(pieces_of(text)))
    assert answer.content == ""
    assert [(call_name, json.loads(arguments)) for _, call_name, arguments in answer.calls] == calls
    assert answer.has_complete_call


@pytest.mark.parametrize("name", FORMATS_BY_NAME)
@given(text=st.text(st.sampled_from('<tool_call>/[TOOL_CALLS]ARGS{}"\\,: fname\n')), data=st.data())
def test_any_text_gives_the_same_answer_in_any_pieces(name: str, text: str, data: st.DataObject) -> None:
    whole = read(call_parser(name), [text] if text else [])
    assert read(call_parser(name), data.draw(pieces_of(text))) == whole
    if not whole.calls:
        assert whole.content == text


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>" * 20_000,
        '<tool_call>{"name": "f", "arguments": {"a": "' + "x" * 200_000,
        '<tool_call>{"arguments": {"a": "' + "x" * 200_000,
        '<tool_call>{"id": "' * 20_000,
        " " * 200_000,
        "[TOOL_CALLS]" * 20_000,
    ],
)
@pytest.mark.parametrize("name", FORMATS_BY_NAME)
def test_time_is_linear_in_the_length(name: str, text: str) -> None:
    def cpu_s(part: str) -> float:
        parser = call_parser(name)
        started = time.process_time()
        for start in range(0, len(part), 3):
            parser.feed(part[start : start + 3])
        return time.process_time() - started

    short = min(cpu_s(text[: len(text) // 8]) for _ in range(3))
    assert cpu_s(text) < 24 * max(short, 0.005)  # eight times, if it is linear; 64 times, if it is quadratic
