"""Writes the text to standard output and everything else to standard error, without running into each other."""

from __future__ import annotations

import sys


class Output:
    """Both streams of the process."""

    def __init__(self) -> None:
        self._is_inside_line = False  # of the text

    def write(self, text: str) -> None:
        """Writes text to standard output, unchanged and at once."""
        sys.stdout.buffer.write(text.encode("utf-8", "replace"))
        sys.stdout.buffer.flush()
        if text:
            self._is_inside_line = not text.endswith("\n")

    def note(self, line: str, *, dim: bool = False) -> None:
        """Writes a line to standard error, below the text where both are seen together.

        Text whose last line is open would have the line glued to it. Only a terminal of standard error alone is known
        not to show the text.
        """
        is_terminal = sys.stderr.isatty()
        if self._is_inside_line and not (is_terminal and not sys.stdout.isatty()):
            sys.stderr.write("\n")
        self._is_inside_line = False
        sys.stderr.write(f"\x1b[2m{line}\x1b[0m\n" if dim and is_terminal else f"{line}\n")
        sys.stderr.flush()
