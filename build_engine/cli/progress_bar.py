"""Shows build progress on a terminal: a bar or spinner for the current step, one line with its time afterwards."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn

from build_engine.progress import Advance


class TerminalProgress:
    """A context manager. If the output is not a terminal, only finished steps and notes are written."""

    def __init__(self, console: Console) -> None:
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
        self._progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._console = console

    def __enter__(self) -> TerminalProgress:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    @contextmanager
    def step(self, label: str, total: int | None = None) -> Iterator[Advance]:
        """Shows the step while the block runs, and its duration in seconds unless the block raises."""
        started = time.monotonic()
        task = self._progress.add_task(escape(label), total=total)
        try:
            yield lambda amount: self._progress.advance(task, amount)
        finally:
            self._progress.remove_task(task)
        self._console.print(f"[green]✓[/] {escape(label)} [dim]{time.monotonic() - started:.1f} s[/]", highlight=False)

    def note(self, text: str) -> None:
        """Prints a line that stays visible."""
        self._console.print(f"[yellow]•[/] {escape(text)}", highlight=False, soft_wrap=True)
