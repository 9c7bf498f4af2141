"""Errors that end a start of the local stack."""

from __future__ import annotations


class PreflightError(Exception):
    """A requirement of the stack is not met. The message names it and the remedy."""


class StartError(Exception):
    """A process of the stack did not start. The message is the reason, with the remedy where one is known."""

    def __init__(self, reason: str, *, log_tail: str = "") -> None:
        """`log_tail` is the end of a log, to be printed above a reason that names no cause."""
        super().__init__(reason)
        self.log_tail = log_tail


class StartCancelledError(Exception):
    """A signal arrived before the stack was ready."""
