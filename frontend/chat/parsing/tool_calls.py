"""Finds calls of functions in the text of a model, by its ToolFormat."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TypeAlias

from frontend.chat.parsing.answer_parser import ContentDelta, Delta, ToolCallArguments, ToolCallStart
from frontend.chat.parsing.call_reader import CallReader, CallState
from frontend.chat.tools.formats import ToolFormat
from llm_pipeline.protocol.messages import FinishReason
from llm_pipeline.text.stop_strings import StopMatcher

_MAX_NAME = 256  # characters of a name that is not JSON
_BETWEEN = " \t\r\n,;"
_Step: TypeAlias = Callable[[str, list[Delta]], str]


class ToolCallParser:
    """Turns text into content and calls: what turns out not to be a call is content.

    `names` are the functions that may be called. With `only_one`, what follows the first complete call is dropped.
    Space before and after calls is dropped, too.
    """

    def __init__(
        self, tool_format: ToolFormat, names: Collection[str], new_id: Callable[[], str], *, only_one: bool
    ) -> None:
        self._format = tool_format
        self._names = names
        self._new_id = new_id
        self._only_one = only_one
        self._calls = 0  # that have begun
        self._is_complete = False  # the last of them
        self._is_in_list = False
        self._space: list[str] = []  # after the content so far
        self._undecided: list[str] = []  # content, unless it belongs to a call
        self._reader: CallReader | None = None
        self._has_begun = False  # the call that is being read
        self._end_read = ""  # of the marker after a call
        self._start = StopMatcher((tool_format.start,) if tool_format.start else ())
        self._step: _Step = self._read_text if tool_format.start else self._read_beginning

    @property
    def has_complete_call(self) -> bool:
        """Whether there are calls and the last one is complete."""
        return self._calls > 0 and self._is_complete

    def feed(self, text: str) -> Sequence[Delta]:
        """Returns what is certain after the next piece of text."""
        deltas: list[Delta] = []
        while text:
            text = self._step(text, deltas)
        return deltas

    def finish(self, finish_reason: FinishReason) -> Sequence[Delta]:
        """Returns the rest of the content. The arguments of a call that was cut have all been returned."""
        deltas: list[Delta] = []
        if self._step != self._drop:
            self._add_content(self._start.flush(), deltas)
            self._give_up(deltas)
            if self._space and not self._calls:
                deltas.append(ContentDelta("".join(self._space)))
        return deltas

    # --- Steps: each reads some of the text, and returns the rest -----------------------------------------------------

    def _read_text(self, text: str, deltas: list[Delta]) -> str:
        """Content, up to the start of a call."""
        content, end = self._start.feed(text)
        self._add_content(content, deltas)
        if end is None:
            return ""
        self._start = StopMatcher((self._format.start,))
        self._undecided.append(self._format.start)
        self._step = self._read_name if self._format.named_by else self._read_opening
        return text[end:]

    def _read_rest(self, text: str, deltas: list[Delta]) -> str:
        """Content, to the end."""
        self._add_content(text, deltas)
        return ""

    def _read_beginning(self, text: str, deltas: list[Delta]) -> str:
        """The beginning of an answer that may be a call."""
        bare = self._skip(text)
        if bare:
            self._step = self._read_opening if bare[0] in "{[" else self._resume(deltas)
        return bare

    def _read_opening(self, text: str, deltas: list[Delta]) -> str:
        """Space, and the bracket of a list of calls."""
        bare = self._skip(text)
        if bare[:1] == "[" and not self._is_in_list:
            self._is_in_list = True
            self._undecided.append("[")
            return bare[1:]
        if bare:
            self._reader, self._step = CallReader(self._names), self._read_call
        return bare

    def _read_name(self, text: str, deltas: list[Delta]) -> str:
        """A name that is not JSON, and what ends it. Its length is limited, so that reading it again costs little."""
        known = "".join(self._undecided[1:])
        before, found, after = (known + text).partition(self._format.named_by)
        if not found and len(known) + len(text) <= _MAX_NAME:
            self._undecided.append(text)
            return ""
        if not found or before.strip() not in self._names:
            self._step = self._resume(deltas)
            return text
        self._undecided = [self._format.start, before, found]
        self._reader, self._step = CallReader(self._names, name=before.strip()), self._read_call
        return after

    def _read_call(self, text: str, deltas: list[Delta]) -> str:
        reader = self._reader
        assert reader is not None
        arguments = reader.feed(text)
        if arguments:
            if not self._has_begun:
                self._begin_call(reader.name or "", deltas)
            deltas.append(ToolCallArguments(self._calls - 1, arguments))
        if reader.state is CallState.COMPLETE:
            self._end_call()
        elif reader.state is CallState.NO_CALL:
            self._step = self._resume(deltas)
        return reader.rest

    def _read_end(self, text: str, deltas: list[Delta]) -> str:
        """The marker after a call, which models may forget."""
        end, read = self._format.end, self._end_read + text if self._end_read else text.lstrip()
        if len(read) < len(end) and end.startswith(read):
            self._end_read = read
            return ""
        self._end_read = ""
        self._step = self._read_text
        return read.removeprefix(end)

    def _read_between(self, text: str, deltas: list[Delta]) -> str:
        """What separates calls that have no marker of their own, or ends the list of them."""
        bare = text.lstrip(_BETWEEN)
        if not bare:
            return ""
        if self._is_in_list and bare[0] == "]":
            self._is_in_list = False
            self._step = self._read_text if self._format.start else self._read_rest
            return bare[1:]
        self._step = self._read_opening if bare[0] == "{" else self._resume(deltas)
        return bare

    def _drop(self, text: str, deltas: list[Delta]) -> str:
        return ""

    # --- Between the steps --------------------------------------------------------------------------------------------

    def _skip(self, text: str) -> str:
        """Keeps the space at the beginning of the text as undecided, and returns what follows it."""
        bare = text.lstrip()
        self._undecided.append(text[: len(text) - len(bare)])
        return bare

    def _begin_call(self, name: str, deltas: list[Delta]) -> None:
        deltas.append(ToolCallStart(self._calls, self._new_id(), name))
        self._calls += 1
        self._has_begun, self._is_complete = True, False
        self._undecided, self._space = [], []

    def _end_call(self) -> None:
        self._reader, self._has_begun, self._is_complete = None, False, True
        if self._only_one:
            self._step = self._drop
        elif self._format.end:
            self._step = self._read_end
        else:
            self._step = self._read_text if self._format.named_by else self._read_between

    def _resume(self, deltas: list[Delta]) -> _Step:
        """Makes content of what is not a call, and returns the step that goes on."""
        self._give_up(deltas)
        self._is_in_list = False
        return self._read_text if self._format.start else self._read_rest

    def _give_up(self, deltas: list[Delta]) -> None:
        read = "" if self._reader is None or self._has_begun else self._reader.text
        self._reader, self._has_begun = None, False
        self._add_content("".join(self._undecided) + read, deltas)
        self._undecided = []

    def _add_content(self, text: str, deltas: list[Delta]) -> None:
        """Adds content up to its last character that is not space: space is dropped if a call follows."""
        content = text.rstrip()
        if content:
            before = "".join(self._space)
            deltas.append(ContentDelta(before + content))
            self._space = []
        if len(content) < len(text):
            self._space.append(text[len(content) :])
