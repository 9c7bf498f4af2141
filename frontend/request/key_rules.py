"""The rules that an API key sets for the fields of its requests."""

from __future__ import annotations

from frontend.api_key import ApiKey
from llm_pipeline.protocol.errors import ErrorCode, PipelineError


def permitted_priority(requested: int | None, key: ApiKey | None) -> int | None:
    """The priority of a request of this key: its own, or the best that the key has if the default, 0, is better.

    Raises PipelineError (400) if the request asks for a better one than the key may use.
    """
    if key is None or key.best_priority is None:
        return requested
    if requested is None:
        return key.best_priority if key.best_priority > 0 else None
    if requested < key.best_priority:
        raise PipelineError(
            ErrorCode.VALUE_OUT_OF_RANGE,
            f"priority must be at least {key.best_priority} with this API key (lower numbers go first).",
            param="priority",
        )
    return requested
