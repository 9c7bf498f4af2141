"""The x-ratelimit headers, in the form of OpenAI's API.

https://platform.openai.com/docs/guides/rate-limits#rate-limits-in-headers: `reset` is the time until the limit is back
in its initial state, as Go writes durations.
"""

from __future__ import annotations

import math
from typing import TypeAlias

Headers: TypeAlias = tuple[tuple[bytes, bytes], ...]


def limit_headers(kind: str, limit: int, used: int, reset_s: float) -> Headers:
    """The three headers of one limit; `kind` is requests or tokens."""
    values = {"limit": str(limit), "remaining": str(max(limit - used, 0)), "reset": duration(reset_s)}
    return tuple((f"x-ratelimit-{name}-{kind}".encode(), value.encode()) for name, value in values.items())


def duration(seconds: float) -> str:
    """A duration such as 20ms, 1s, 1.5s, 6m0s or 23h0m5s, rounded up to ms, or to s from a minute on."""
    milliseconds = math.ceil(seconds * 1000 - 1e-6)
    if milliseconds < 1000:
        return f"{milliseconds}ms" if milliseconds > 0 else "0s"
    if milliseconds < 60_000:
        return f"{milliseconds / 1000:g}s"
    minutes, rest = divmod(math.ceil(milliseconds / 1000), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m{rest}s" if hours else f"{minutes}m{rest}s"
