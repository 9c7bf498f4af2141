"""The rest of a coroutine whose first step has run without a task.

A task that is started, or woken, costs more than most of what the front end does: the event loop schedules it and
resumes its whole chain of coroutines. Much of what might wait for a socket does not have to. Then the first step,
`coroutine.send(None)`, is all of it and raises StopIteration; if it is not, a task awaits the rest as `Unfinished`.
"""

from __future__ import annotations

from collections.abc import Coroutine, Generator
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Unfinished(Generic[T]):
    """A coroutine that has begun and awaits `waits_for`, the result of its first step. A task awaits this once."""

    def __init__(self, coroutine: Coroutine[Any, Any, T], waits_for: Any) -> None:
        self._coroutine = coroutine
        self._waits_for = waits_for

    def __await__(self) -> Generator[Any, Any, T]:
        try:
            yield self._waits_for  # to the event loop, which continues the task when it is done
            return (yield from self._coroutine.__await__())
        finally:
            self._coroutine.close()
