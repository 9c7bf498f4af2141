"""Ids of tool calls."""

from __future__ import annotations

import secrets
import string

from frontend.chat.tools.formats import ToolFormat

_ALPHANUMERIC = string.ascii_letters + string.digits
_SHORT = 9  # Mistral's templates refuse ids of another length
_LONG = 24


def new_call_id(tool_format: ToolFormat) -> str:
    """A random id, in the form that the templates of the format accept."""
    if tool_format.has_short_ids:
        return "".join(secrets.choice(_ALPHANUMERIC) for _ in range(_SHORT))
    return "call_" + "".join(secrets.choice(_ALPHANUMERIC) for _ in range(_LONG))
