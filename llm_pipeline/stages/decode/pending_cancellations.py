"""Stops that arrive before their request does, while preprocess still works on it."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

_KEPT = 10_000
# Longer than a request may wait in front of decode when the server is at its limits. The front end's keys are unique;
# other clients may use one again, and must not meet the stop of an earlier request.
_KEPT_S = 30.0


class PendingCancellations:
    """Keys to end as soon as they come. Keeps at most 10,000, for 30 s. Not thread-safe: decode guards it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._stopped: OrderedDict[str, float] = OrderedDict()  # key -> when it was stopped
        self._ended: OrderedDict[str, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._stopped)

    def remember(self, key: str) -> None:
        """A stop for a request that is not here. For one that was, it is late and means nothing."""
        if key in self._ended:
            return
        self._stopped[key] = self._clock()
        self._stopped.move_to_end(key)
        self._forget_old()

    def began(self, key: str) -> bool:
        """A request has come; whether it was stopped before it did."""
        self._ended.pop(key, None)
        stopped = self._stopped.pop(key, None)
        return stopped is not None and self._clock() - stopped < _KEPT_S

    def ended(self, key: str) -> None:
        """A request has ended: stops for it that are still under way are late."""
        self._ended[key] = None
        if len(self._ended) > _KEPT:
            self._ended.popitem(last=False)

    def _forget_old(self) -> None:
        oldest = self._clock() - _KEPT_S
        while len(self._stopped) > _KEPT or next(iter(self._stopped.values())) < oldest:
            self._stopped.popitem(last=False)
