"""Errors that end a start of the local stack."""

from __future__ import annotations


class PreflightError(Exception):
    """A requirement of the stack is not met. The message names it and the remedy."""


class StartError(Exception):
    """A process of the stack did not start. The message names it and quotes the end of its log."""


class StartCancelledError(Exception):
    """A signal arrived before the stack was ready."""
