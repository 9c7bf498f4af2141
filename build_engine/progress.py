"""How a build tells what it is doing. terminal_progress shows it; SilentProgress is for tests and libraries."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

Advance = Callable[[int], None]


class BuildProgress(Protocol):
    """Receives the steps of a build, in order."""

    def step(self, label: str, total: int | None = None) -> AbstractContextManager[Advance]:
        """One step; `total` (bytes or pieces) makes it a bar that the yielded function advances, None a spinner."""
        ...

    def note(self, text: str) -> None:
        """One line that stays."""
        ...


class SilentProgress:
    """Says nothing."""

    @contextmanager
    def step(self, label: str, total: int | None = None) -> Iterator[Advance]:
        yield lambda amount: None

    def note(self, text: str) -> None:
        return
