"""Reads the JSON object of one call piece by piece: `{"name": "f", "arguments": {...}}`, with its keys in any order."""

from __future__ import annotations

import json
from collections.abc import Collection
from enum import Enum, auto

_SPACE = " \t\r\n"
_ARGUMENT_KEYS = frozenset({"arguments", "parameters"})
_KEYS = _ARGUMENT_KEYS | {"name", "type", "id"}
_CLOSING = {"{": "}", "[": "]"}
_NO_ARGUMENTS = "{}"


class CallState(Enum):
    """How far a call is."""

    READING = auto()
    COMPLETE = auto()
    NO_CALL = auto()  # the text is not a call of one of the functions


class CallReader:
    """The call that a text begins with. `names` are the functions that may be called.

    With a `name`, the text is the object of its arguments alone. The arguments are returned as the model writes them,
    unless they are missing (then `{}`) or a string that contains them. The time is linear in the text.
    """

    def __init__(self, names: Collection[str], *, name: str | None = None) -> None:
        self.state = CallState.READING
        self.name = name  # set before any arguments are returned
        self.rest = ""  # of the last piece: what follows a complete call, or what ends NO_CALL
        self._names = names
        self._top = 1 if name is None else 0  # number of open brackets at which the keys of a call stand
        self._read: list[str] = []
        self._open: list[str] = []  # the brackets that will close those that are open
        self._is_in_string = False
        self._is_escaped = False
        self._expects_key = False
        self._key = "" if name is None else "arguments"
        self._captures = False  # a key, or a value of the top level
        self._captured: list[str] = []
        self._capture_from = 0  # in the current piece
        self._has_arguments = False
        self._streams_arguments = False  # while they are captured
        self._arguments: list[str] = []  # that have not been returned

    @property
    def text(self) -> str:
        """Everything that was read, without `rest`."""
        return "".join(self._read)

    def feed(self, text: str) -> str:
        """Reads on, and returns the next piece of the arguments."""
        position, self._capture_from = 0, 0
        while self.state is CallState.READING and position < len(text):
            read = self._read_string if self._is_in_string else self._read_character
            position = read(text, position)
        self._read.append(text[:position])
        self.rest = text[position:]
        if self._captures:
            self._captured.append(text[self._capture_from : position])
        if self._captures and self._streams_arguments:
            self._arguments += self._captured
            self._captured = []
        if self.state is CallState.NO_CALL or self.name is None:
            return ""
        returned, self._arguments = "".join(self._arguments), []
        return returned

    # --- Each reads from a position, and returns the next one ---------------------------------------------------------

    def _read_character(self, text: str, at: int) -> int:
        character, is_top = text[at], len(self._open) == self._top
        if character in _SPACE:
            return at + 1
        if not self._open:
            if character != "{":
                self.state = CallState.NO_CALL
                return at
            self._expects_key = self._top == 1
            if self._top == 0:
                self._begin_value(at, character)
            self._open.append("}")
        elif character in "}]":
            self._close(text, at)
        elif is_top and self._top == 1 and character in ",:":
            if character == ",":
                self._end_value(text, at)
                self._expects_key = True
        else:
            if is_top and self._top == 1 and not self._captures:
                self._begin_value(at, character)
            if character == '"':
                self._is_in_string = True
            elif character in _CLOSING:
                self._open.append(_CLOSING[character])
        return at + 1

    def _read_string(self, text: str, at: int) -> int:
        if self._is_escaped:
            self._is_escaped = False
            return at + 1
        quote, escape = text.find('"', at), text.find("\\", at)
        if escape >= 0 and (quote < 0 or escape < quote):
            self._is_escaped = True
            return escape + 1
        if quote < 0:
            return len(text)
        self._is_in_string = False
        if self._expects_key and len(self._open) == self._top:
            self._end_key(text, quote + 1)
        return quote + 1

    # --- Keys and values of the call ----------------------------------------------------------------------------------

    def _begin_value(self, at: int, first: str) -> None:
        self._captures, self._capture_from, self._captured = True, at, []
        if not self._expects_key and self._key in _ARGUMENT_KEYS:
            if self._has_arguments or first not in '{"n':
                self.state = CallState.NO_CALL
            self._has_arguments = True
            self._streams_arguments = first == "{"

    def _capture(self, text: str, end: int) -> str:
        self._captures = False
        captured = "".join(self._captured) + text[self._capture_from : end]
        self._captured = []
        return captured

    def _end_key(self, text: str, end: int) -> None:
        self._expects_key = False
        self._key = self._capture(text, end)[1:-1]
        if self._key not in _KEYS:
            self.state = CallState.NO_CALL

    def _end_value(self, text: str, end: int) -> None:
        if not self._captures:
            return
        value = self._capture(text, end).rstrip()
        if self._key == "name":
            self.name = _string(value)
            if self.name not in self._names:
                self.state = CallState.NO_CALL
        elif self._key in _ARGUMENT_KEYS:
            self._arguments.append(value if self._streams_arguments else _string(value) or _NO_ARGUMENTS)
            self._streams_arguments = False

    def _close(self, text: str, at: int) -> None:
        if self._open.pop() != text[at]:
            self.state = CallState.NO_CALL
        elif self._open:
            if len(self._open) == self._top and self._key in _ARGUMENT_KEYS:
                self._end_value(text, at + 1)
        else:
            self._end_value(text, at + 1 if self._top == 0 else at)
            if self.state is CallState.READING:
                self.state = CallState.COMPLETE if self.name is not None else CallState.NO_CALL
            if not self._has_arguments:
                self._arguments.append(_NO_ARGUMENTS)


def _string(text: str) -> str | None:
    """The value of a JSON string; None for anything else."""
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, str) else None
