"""Finds stop strings in text that arrives piece by piece, and holds back text that may be the start of one.

The rules: the match that ends first in the text wins, ties by list order. An excluded match is cut off, so a character
that may belong to one is not released until that is decided. An included match ends the text.

How it works: one Knuth-Morris-Pratt automaton per stop string. Its state is the number of characters of the stop string
that the text ends with; the largest state is the number of characters to hold back. While every state is 0, `str.find`
skips to the next first character, so text without one costs no Python work per character.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from functools import lru_cache


class StopMatcher:
    """Searches the text of one request for its stop strings, which must not be empty, up to the first match."""

    def __init__(self, stops: Sequence[str], *, includes_match: bool = False) -> None:
        self._stops = tuple(stops)
        self._includes_match = includes_match
        self._borders = _borders_of(self._stops)
        self._first_characters = frozenset(stop[0] for stop in self._stops)
        self._states = [0] * len(self._stops)
        self._held = ""

    def feed(self, text: str) -> tuple[str, int | None]:
        """Returns the text that may be released, and the length of `text` up to the end of a match, or None.

        After a match no more text may be fed.
        """
        if not self._held and self._first_characters.isdisjoint(text):
            return text, None
        match = self._search(text)
        known = self._held + text
        if match is None:
            held_count = max(self._states)
            self._held = known[len(known) - held_count :]
            return known[: len(known) - held_count], None
        end, stop = match
        cut = len(self._held) + end - (0 if self._includes_match else len(stop))
        self._held = ""
        return known[:cut], end

    def flush(self) -> str:
        """Returns the text that was held back. Called at the end, when it can no longer become a match."""
        held, self._held = self._held, ""
        self._states = [0] * len(self._stops)
        return held

    def _search(self, text: str) -> tuple[int, str] | None:
        """Returns the end and the stop string of the first match. Without one, all states are those after `text`."""
        match = None
        limit = len(text)  # a later stop string wins only if it ends before the match so far
        for index, stop in enumerate(self._stops):
            state, end = _advance(stop, self._borders[index], self._states[index], text, limit)
            self._states[index] = state
            if state == len(stop):
                match = end, stop
                limit = end - 1
        return match


def _advance(stop: str, borders: array[int], state: int, text: str, limit: int) -> tuple[int, int]:
    """Runs one automaton over `text[:limit]` until `stop` is complete. Returns its state and the characters it read."""
    position = 0
    while position < limit:
        if state == 0:
            position = text.find(stop[0], position, limit)
            if position < 0:
                return 0, limit
        elif text[position] != stop[state]:
            state = borders[state]
            continue
        position += 1
        state += 1
        if state == len(stop):
            break
    return state, position


@lru_cache(maxsize=128)
def _borders_of(stops: tuple[str, ...]) -> tuple[array[int], ...]:
    return tuple(_borders(stop) for stop in stops)


def _borders(stop: str) -> array[int]:
    """Returns for every n the length of the longest proper prefix of stop[:n] that is also its suffix; 0 for n=0.

    Linear in the stop string: the Knuth-Morris-Pratt failure function.
    """
    borders = array("H", [0, 0])  # uint16: the API allows 1,024 characters
    length = 0
    for position in range(1, len(stop)):
        while length and stop[position] != stop[length]:
            length = borders[length]
        if stop[position] == stop[length]:
            length += 1
        borders.append(length)
    return borders
