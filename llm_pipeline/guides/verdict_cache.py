"""Remembers guides that can't be used, and, if no masks are made, guides that can, so that a repeat costs nothing.

A verdict that does not depend on the circumstances is shared by all tenants. One about time or memory does depend on
them, and a tenant may be able to provoke it: it counts for the tenant that got it, and for a limited time.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import TypeAlias

from llm_pipeline.protocol.errors import PipelineError
from llm_pipeline.protocol.messages import Guide

_Key: TypeAlias = tuple[str | None, bytes]


def digest_of(guide: Guide) -> bytes:
    """Returns a short name of a guide's content."""
    source = (guide.source or "").encode(errors="surrogatepass")
    return hashlib.sha256(guide.type.value.encode() + b"\0" + source).digest()


class VerdictCache:
    """The `size` verdicts used most recently. Not thread-safe. `now` is any clock in seconds."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._verdicts: OrderedDict[_Key, tuple[PipelineError | None, float]] = OrderedDict()

    def add(
        self, digest: bytes, error: PipelineError | None, *, tenant: str | None = None, until: float = float("inf")
    ) -> None:
        """Remembers a verdict, for all tenants or for one. `error` is None if the guide can be used."""
        self._verdicts[tenant, digest] = (error, until)
        self._verdicts.move_to_end((tenant, digest))
        if len(self._verdicts) > self._size:
            self._verdicts.popitem(last=False)

    def find(self, digest: bytes, tenant: str, now: float) -> tuple[PipelineError | None] | None:
        """Returns the verdict in a tuple; None if there is none."""
        for key in ((None, digest), (tenant, digest)):
            entry = self._verdicts.get(key)
            if entry is None:
                continue
            error, until = entry
            if now < until:
                self._verdicts.move_to_end(key)
                return (error,)
            del self._verdicts[key]
        return None
