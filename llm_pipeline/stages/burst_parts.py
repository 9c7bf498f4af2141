"""Handles the bursts of channels as JSON, whole or one share of their requests: what each process of postprocess does.

The classes here are pickled. They can't be in the module that a worker runs as `__main__`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

from llm_pipeline.protocol.channel import Share
from llm_pipeline.protocol.channel_json import LOST_BURST, join_text_parts, token_burst_from_json
from llm_pipeline.stages.postprocess import PostprocessStage

_log = logging.getLogger(__name__)


class BurstPart(NamedTuple):
    """One share of a burst: its text as JSON, and the facts of the whole burst."""

    serial: int
    ack_address: str | None
    text: bytes


class WorkerReply(NamedTuple):
    """A worker's answer to a batch of bursts: one part for each, and the requests to cancel in decode."""

    parts: list[BurstPart | None]
    keys_to_cancel: list[str]


class TextResponse(NamedTuple):
    """A text burst as JSON, and the address to which the token burst is to be acknowledged."""

    text: bytes
    ack_address: str | None


def handle_part(stage: PostprocessStage, sent: bytes, share: Share) -> BurstPart | None:
    """Returns the text of a share of a token burst; None, after logging the cause, if that fails."""
    try:
        burst = token_burst_from_json(sent, share)
        address = burst.ack_address if isinstance(burst.ack_address, str) else None
        return BurstPart(burst.serial, address, stage.handle_burst(burst).to_json())
    except Exception:  # noqa: BLE001 - the client of this burst fails its requests; those of other clients go on
        _log.exception("a burst could not be handled")
        return None


def join_parts(parts: Sequence[BurstPart | None]) -> TextResponse:
    """Returns the response for a burst from all its parts; LOST_BURST if one is missing.

    An error response would end the channel while decode still sends.
    """
    complete = [part for part in parts if part is not None]
    if len(complete) < len(parts):
        return TextResponse(LOST_BURST, None)
    first = complete[0]
    return TextResponse(join_text_parts(first.serial, [part.text for part in complete]), first.ack_address)
