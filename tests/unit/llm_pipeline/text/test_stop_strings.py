"""Stop strings in streamed text: the same matches as a naive search of the whole text."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_pipeline.protocol.fields import MAX_STOP_CHARACTERS, MAX_STOP_STRINGS
from llm_pipeline.text.stop_strings import StopMatcher

PROPERTY = settings(max_examples=200, deadline=None, derandomize=True)

stop_lists = st.lists(st.text(alphabet="ab世", min_size=1, max_size=5), min_size=1, max_size=4)
piece_lists = st.lists(st.text(alphabet="abc世", max_size=6), max_size=10)


def reference(text: str, stops: list[str], includes_match: bool) -> tuple[str, int | None]:
    """The text up to the match that ends first, ties by list order, and where it ends."""
    for end in range(1, len(text) + 1):
        for stop in stops:
            if text[:end].endswith(stop):
                return text[: end if includes_match else end - len(stop)], end
    return text, None


def feed_all(matcher: StopMatcher, pieces: list[str]) -> tuple[str, int | None]:
    shown, count = "", 0
    for piece in pieces:
        safe, end = matcher.feed(piece)
        shown += safe
        if end is not None:
            return shown, count + end
        count += len(piece)
    return shown + matcher.flush(), None


@given(pieces=piece_lists, stops=stop_lists, includes_match=st.booleans())
@PROPERTY
def test_any_split_equals_a_search_of_the_whole(pieces: list[str], stops: list[str], includes_match: bool) -> None:
    matcher = StopMatcher(stops, includes_match=includes_match)
    assert feed_all(matcher, pieces) == reference("".join(pieces), stops, includes_match)


@pytest.mark.parametrize("stop", ["xyz", "世😀", "aab", "x"], ids=ascii)
@pytest.mark.parametrize("size", [1, 2, 3, 50])
def test_a_stop_string_is_found_at_every_offset(stop: str, size: int) -> None:
    filler = "aa 界 x世 aaxy"
    for offset in range(len(filler) + 1):
        text = filler[:offset] + stop + filler[offset:]
        pieces = [text[start : start + size] for start in range(0, len(text), size)]
        assert feed_all(StopMatcher([stop]), pieces) == reference(text, [stop], False)


@given(text=st.text(alphabet="abc", max_size=30), stops=stop_lists)
@PROPERTY
def test_exactly_the_text_that_may_become_a_match_is_held_back(text: str, stops: list[str]) -> None:
    """Not more, so that tokens are sent without delay; not less, so that no excluded character is ever sent."""
    matcher = StopMatcher(stops)
    shown = ""
    for end, character in enumerate(text, start=1):
        safe, match_end = matcher.feed(character)
        if match_end is not None:
            break
        shown += safe
        known = text[:end]
        held = next(n for n in range(len(known), -1, -1) if _is_start_of_a_stop(known[len(known) - n :], stops))
        assert shown == known[: len(known) - held]


def _is_start_of_a_stop(text: str, stops: list[str]) -> bool:
    return any(stop.startswith(text) for stop in stops)


@pytest.mark.parametrize(
    ("stops", "text", "expected"),
    [
        (["abc", "b"], "ab", "a"),
        (["b", "abc"], "xabc", "xa"),
        (["c", "bc"], "abc", "ab"),
        (["bc", "c"], "abc", "a"),
        (["aab"], "aaab", "a"),
        (["a", "a"], "ba", "b"),
    ],
)
def test_overlapping_stop_strings(stops: list[str], text: str, expected: str) -> None:
    """The match that ends first wins, even if another started before; ties go to the one listed first."""
    for pieces in ([text], list(text)):
        shown, _ = feed_all(StopMatcher(stops), pieces)
        assert shown == expected


def test_an_included_match_ends_the_text() -> None:
    assert feed_all(StopMatcher(["world"], includes_match=True), ["Hello wor", "ld!"]) == ("Hello world", 11)


def test_a_near_match_is_released_as_soon_as_it_fails() -> None:
    matcher = StopMatcher(["END."])
    assert [matcher.feed(piece)[0] for piece in ("a E", "ND", "S b")] == ["a ", "", "ENDS b"]


def test_the_longest_list_of_the_longest_stop_strings_works() -> None:
    stops = [chr(ord("a") + n) + "x" * (MAX_STOP_CHARACTERS - 1) for n in range(MAX_STOP_STRINGS)]
    text = "a" + "x" * (MAX_STOP_CHARACTERS - 2) + "y" + stops[5] + "tail"
    assert feed_all(StopMatcher(stops), list(text)) == reference_of_one(text, stops[5])


def reference_of_one(text: str, stop: str) -> tuple[str, int]:
    start = text.index(stop)
    return text[:start], start + len(stop)


def test_text_without_a_first_character_is_returned_unchanged() -> None:
    """The usual case costs no Python work per character: the same object is returned."""
    text = "nothing to see here" * 100
    safe, end = StopMatcher(["###", "Ω"]).feed(text)
    assert safe is text
    assert end is None
