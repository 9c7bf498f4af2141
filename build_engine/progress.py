"""Reports the progress of a build. cli/progress_bar shows it on a terminal; SilentProgress is for libraries."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

Advance = Callable[[int], None]


class BuildProgress(Protocol):
    """Receives the steps of a build in order."""

    def step(self, label: str, total: int | None = None) -> AbstractContextManager[Advance]:
        """Encloses one step. With a `total` (bytes or items) the yielded function advances a bar; None: a spinner."""
        ...

    def note(self, text: str) -> None:
        """Adds a line that stays visible."""
        ...


class SilentProgress:
    """Discards everything."""

    @contextmanager
    def step(self, label: str, total: int | None = None) -> Iterator[Advance]:
        yield lambda amount: None

    def note(self, text: str) -> None:
        return
