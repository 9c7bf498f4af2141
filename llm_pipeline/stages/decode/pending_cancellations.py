"""Remembers cancellations that arrive before their request, which preprocess may still be working on."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

MAX_KEYS = 10_000
# Longer than a request may wait in front of decode under full load, and short because only the front end's keys are
# unique: another client may use a key again, and an old cancellation must not end its new request.
MAX_AGE_S = 30.0


class PendingCancellations:
    """Keys to cancel on arrival, and the keys that ended recently. Both are bounded. Not thread-safe."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        *,
        max_keys: int = MAX_KEYS,
        max_age_s: float = MAX_AGE_S,
    ) -> None:
        self._clock = clock
        self._max_keys = max_keys
        self._max_age_s = max_age_s
        self._cancelled_at: OrderedDict[str, float] = OrderedDict()
        self._ended: OrderedDict[str, None] = OrderedDict()

    def add(self, key: str) -> None:
        """Remembers a cancellation for a request that has not arrived. Ignored if it already ended."""
        if key in self._ended:
            return
        self._cancelled_at[key] = self._clock()
        self._cancelled_at.move_to_end(key)
        self._remove_old()

    def on_register(self, key: str) -> bool:
        """Returns whether the request that arrives now has already been cancelled, and forgets the cancellation."""
        self._ended.pop(key, None)
        cancelled_at = self._cancelled_at.pop(key, None)
        return cancelled_at is not None and self._clock() - cancelled_at < self._max_age_s

    def on_end(self, key: str) -> None:
        """Records that a request has ended, so that a late cancellation does not hit the next request with this key."""
        self._ended[key] = None
        if len(self._ended) > self._max_keys:
            self._ended.popitem(last=False)

    def _remove_old(self) -> None:
        oldest = self._clock() - self._max_age_s
        while len(self._cancelled_at) > self._max_keys or next(iter(self._cancelled_at.values())) < oldest:
            self._cancelled_at.popitem(last=False)
