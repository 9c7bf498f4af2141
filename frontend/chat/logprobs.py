"""Writes logprobs in chat's form: an object for each token. The values are those of completions, unchanged."""

from __future__ import annotations

import re
from typing import Any

import orjson

_PART_OF_A_CHARACTER = re.compile(r"bytes:((?:\\x[0-9a-f]{2})+)")
_TOKEN_ID = re.compile(r"token_id:[0-9]+")
_NO_LOGPROB = -9999.0  # OpenAI's value for a token without one


def token_logprobs(logprobs_json: bytes, num_top: int) -> list[dict[str, Any]]:
    """The entries of `logprobs.content`. `logprobs_json` is the logprobs object of a completion (text/logprobs.py)."""
    lists = orjson.loads(logprobs_json)
    entries = zip(lists["tokens"], lists["token_logprobs"], lists["top_logprobs"], strict=True)
    return [_entry(token, logprob, top or {}, num_top) for token, logprob, top in entries]


def _entry(token: str, logprob: float | None, top: dict[str, float], num_top: int) -> dict[str, Any]:
    # The token itself is behind the most likely ones if it is not among them, and more than were requested.
    top_logprobs = [_token(*item) for item in list(top.items())[:num_top]]
    return {**_token(token, logprob), "top_logprobs": top_logprobs}


def _token(token: str, logprob: float | None) -> dict[str, Any]:
    return {"token": token, "logprob": _NO_LOGPROB if logprob is None else logprob, "bytes": token_bytes(token)}


def token_bytes(token: str) -> list[int] | None:
    """The bytes of a token as it is listed; None for one that is listed by its id."""
    if _TOKEN_ID.fullmatch(token):
        return None
    if part := _PART_OF_A_CHARACTER.fullmatch(token):
        return [*bytes.fromhex(part[1].replace("\\x", ""))]
    return [*token.encode()]
