"""Writes the text to standard output and everything else to standard error, without running into each other."""

from __future__ import annotations

import sys


class Output:
    """Both streams of the process."""

    def __init__(self) -> None:
        self._is_inside_line = False  # of the text
        self._is_inside_aside = False

    def write(self, text: str) -> None:
        """Writes text to standard output, unchanged and at once."""
        self._end_aside()
        sys.stdout.buffer.write(text.encode("utf-8", "replace"))
        sys.stdout.buffer.flush()
        if text:
            self._is_inside_line = not text.endswith("\n")

    def end_line(self) -> None:
        """Ends the line of the text, if it is open."""
        if self._is_inside_line:
            self.write("\n")

    def aside(self, text: str) -> None:
        """Writes part of a longer text to standard error at once, dimmed on a terminal."""
        if not self._is_inside_aside:
            self._begin_line()
        sys.stderr.write(f"\x1b[2m{text}\x1b[0m" if sys.stderr.isatty() else text)
        sys.stderr.flush()
        if text:
            self._is_inside_aside = not text.endswith("\n")

    def note(self, line: str, *, dim: bool = False) -> None:
        """Writes a line to standard error, below the text where both are seen together.

        Text whose last line is open would have the line glued to it. Only a terminal of standard error alone is known
        not to show the text.
        """
        self._end_aside()
        self._begin_line()
        sys.stderr.write(f"\x1b[2m{line}\x1b[0m\n" if dim and sys.stderr.isatty() else f"{line}\n")
        sys.stderr.flush()

    def _begin_line(self) -> None:
        if self._is_inside_line and not (sys.stderr.isatty() and not sys.stdout.isatty()):
            sys.stderr.write("\n")
        self._is_inside_line = False

    def _end_aside(self) -> None:
        if self._is_inside_aside:
            self._is_inside_aside = False
            sys.stderr.write("\n")
            sys.stderr.flush()
