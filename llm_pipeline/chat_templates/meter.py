"""The limits of one rendering: its time and its output."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from contextvars import ContextVar
from typing import Any

MIB = 1 << 20
MAX_CHARACTERS = 8 * MIB  # of the prompt, and of any value that a template computes
LIMIT_S = 2.0
_MAX_ITEMS = MIB  # of a list, and of all values within one that is written
_MAX_WRITTEN = 4 * MAX_CHARACTERS  # with text that a template captures and writes again
_HOLD_S = 0.002  # between two pauses


class ChatTemplateError(Exception):
    """The template can't be used, or refuses the messages. The message gives the cause."""


class OverTimeError(ChatTemplateError):
    """Rendering took longer than its limit."""


class Meter:
    """The time and the output of one rendering.

    With `pauses`, the thread sleeps after each 2 ms for as long as it has run: a rendering in a thread takes at most
    half of the interpreter's time. The limit is then of the thread's own work, without pauses and waits.
    """

    def __init__(self, limit_s: float, *, pauses: bool = False) -> None:
        self._limit_s = limit_s
        self._work_left_s = limit_s
        self._slice_s = _HOLD_S if pauses else limit_s
        self._since_s = self._since_work_s = self._due_s = 0.0
        self._written = 0

    def start(self) -> None:
        """Starts the clock, in the thread that renders."""
        self._since_s = time.monotonic()
        self._since_work_s = time.thread_time()
        self._due_s = self._since_s + min(self._slice_s, self._work_left_s)

    def tick(self) -> None:
        """Raises OverTimeError beyond the time limit."""
        now_s = time.monotonic()
        if now_s < self._due_s:
            return
        self._work_left_s -= time.thread_time() - self._since_work_s
        if self._work_left_s <= 0 or self._slice_s == self._limit_s:
            raise OverTimeError(f"it took longer than {self._limit_s:g} s")
        time.sleep(now_s - self._since_s)
        self.start()

    def cancel(self) -> None:
        """Ends the rendering, which may be in another thread, with OverTimeError."""
        self._work_left_s = self._due_s = -math.inf

    def write(self, characters: int) -> None:
        """Raises ChatTemplateError beyond the limit of output."""
        self._written += characters
        if self._written > _MAX_WRITTEN:
            raise too_large()
        self.tick()


METER: ContextVar[Meter] = ContextVar("chat_template_meter")


def too_large() -> ChatTemplateError:
    return ChatTemplateError(f"it makes more than {MAX_CHARACTERS} characters")


def measure(value: Any) -> int:
    """Returns the characters of all strings in a value. Raises ChatTemplateError for more than the limits.

    A list that contains another twice, which contains a third twice, is small in memory and huge as a text.
    """
    if type(value) is str:
        return len(value)
    if not isinstance(value, (dict, list, tuple)):
        return 0
    waiting, items, characters = [value], 0, 0
    meter = METER.get()
    while waiting:
        meter.tick()
        container = waiting.pop()
        members: Iterable[Any] = (*container, *container.values()) if isinstance(container, dict) else container
        items += len(container)
        for member in members:
            if type(member) is str:
                characters += len(member)
            elif isinstance(member, (dict, list, tuple)):
                waiting.append(member)
        if items > _MAX_ITEMS or characters > MAX_CHARACTERS:
            raise too_large()
    return characters


def require_length(length: int) -> None:
    if length > MAX_CHARACTERS:
        raise too_large()
