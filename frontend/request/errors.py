"""The error of a request body that violates one or more rules, with a list of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llm_pipeline.protocol.errors import ErrorCode, PipelineError


@dataclass(frozen=True)
class Detail:
    """One violated rule. `location` is a path such as `body.prompt[1]`."""

    message: str
    location: str


class RequestInvalidError(PipelineError):
    """A request that violates one or more rules. The first determines the code and the message."""

    def __init__(self, code: ErrorCode, message: str, *, param: str | None, details: Sequence[Detail]) -> None:
        super().__init__(code, message, param=param)
        self.details = tuple(details)
