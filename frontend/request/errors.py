"""The error of a request body that breaks several rules at once: it lists all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llm_pipeline.protocol.errors import ErrorCode, PipelineError


@dataclass(frozen=True)
class Detail:
    """One broken rule. `location` is a path such as `body.prompt[1]`."""

    message: str
    location: str


class RequestInvalidError(PipelineError):
    """A request that breaks one rule or several; the first gives the code and the message."""

    def __init__(self, code: ErrorCode, message: str, *, param: str | None, details: Sequence[Detail]) -> None:
        super().__init__(code, message, param=param)
        self.details = tuple(details)
