"""The errors of a build or a check.

BuildEngineError      a step was tried and failed                              exit status 1
  EngineRefusedError  the input or the machine is unsuitable; nothing started  exit status 3
    OtherModelError   the directory has an engine of another model             exit status 3
  EngineBusyError     another build locked the directory for too long          exit status 1

Messages have the cause, the value, and what to do.
"""

from __future__ import annotations

from typing import ClassVar


class BuildEngineError(Exception):
    """The build failed. The message is printed for the user."""

    exit_status: ClassVar[int] = 1


class EngineRefusedError(BuildEngineError):
    """This model, directory or machine can't give a correct engine. Nothing was changed."""

    exit_status: ClassVar[int] = 3


class OtherModelError(EngineRefusedError):
    """The engine directory has an engine of another model, which would be lost."""


class EngineBusyError(BuildEngineError):
    """Another build of the same engine did not finish within the wait limit."""
