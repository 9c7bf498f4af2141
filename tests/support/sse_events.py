"""The events of a streamed response, as JSON."""

from __future__ import annotations

import json
from typing import Any


def events(body: str) -> list[Any]:
    """The JSON of each event. AssertionError if the framing or the end of the stream is wrong."""
    blocks = body.split("\n\n")
    assert blocks[-2:] == ["data: [DONE]", ""]
    assert all(block.startswith("data: ") and "\n" not in block for block in blocks[:-1])
    return [json.loads(block.removeprefix("data: ")) for block in blocks[:-2]]
