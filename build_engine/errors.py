"""Every way a build or a check can end badly.

BuildEngineError      the work was tried and failed                 exit status 1
  EngineRefusedError  the input or the machine can't give an engine exit status 3, nothing was started
  EngineBusyError     another build holds the directory too long    exit status 1

Messages say what was wrong, with the value, and how to mend it.
"""

from __future__ import annotations

from typing import ClassVar


class BuildEngineError(Exception):
    """The build failed; the message is for the person at the terminal."""

    exit_status: ClassVar[int] = 1


class EngineRefusedError(BuildEngineError):
    """This model, directory or machine can't give a correct engine. Nothing was changed."""

    exit_status: ClassVar[int] = 3


class EngineBusyError(BuildEngineError):
    """Another build of the same engine did not finish within the wait limit."""
